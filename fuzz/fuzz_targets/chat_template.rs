#![no_main]

burn_lora_fuzz::target!("chat_template");
