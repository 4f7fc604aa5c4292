//! Any TOML as the settings of a loader: refused with an error, or read back the same after it was written.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qf_pipeline::LoaderConfig;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // A run's file has them in a table.
    let Ok(table) = toml::from_str::<toml::Table>(text) else {
        return;
    };
    let data = table
        .get("data")
        .cloned()
        .unwrap_or(toml::Value::Table(table));
    let Ok(config) = data.try_into::<LoaderConfig>() else {
        return;
    };
    if config.validate().is_err() {
        return;
    }
    let written = toml::to_string(&config).expect("serialises");
    let read: LoaderConfig = toml::from_str(&written).expect("reads what it wrote");
    assert_eq!(read, config);
    let _ = config.read_options();
    let _ = config.decode_limits();
    let _ = config.image_transform();
});
