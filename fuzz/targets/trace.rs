#![no_main]

libfuzzer_sys::fuzz_target!(
    init: presnap_fuzz::prepare(),
    |data: &[u8]| presnap_fuzz::check(presnap_fuzz::entries::trace, data)
);
