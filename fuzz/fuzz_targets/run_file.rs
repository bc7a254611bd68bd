#![no_main]

burn_lora_fuzz::target!("run_file");
