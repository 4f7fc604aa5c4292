//! Any JSON as a loader's state, its checksum left out: it is refused, or comes back as it is; states that pass
//! their check can be merged.
#![no_main]

use libfuzzer_sys::fuzz_target;
use qf_pipeline::loader::LoaderState;

fuzz_target!(|data: &[u8]| {
    let Ok(mut fields) = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(data)
    else {
        return;
    };
    fields.remove("sha256");
    let Ok(state) = serde_json::from_value::<LoaderState>(fields.into()) else {
        return;
    };
    let text = serde_json::to_string(&state).expect("serialises");
    assert_eq!(
        serde_json::from_str::<LoaderState>(&text).expect("comes back"),
        state
    );
    if state.check(&state.order).is_ok() {
        for ranks in 1..4 {
            let _ = LoaderState::merge(&vec![state.clone(); ranks]);
        }
    }
});
