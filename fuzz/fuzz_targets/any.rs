//! All targets in one program: the name that it is started by says which it is.
#![no_main]

burn_lora_fuzz::target!(&burn_lora_fuzz::program());
