//! Shards among Azure's blobs.

use qf_pipeline::index::{Found, ShardIndex};
use qf_pipeline::order::ShuffleMode;
use qf_pipeline::remote::RemoteOptions;
use qf_pipeline::source::ShardLocation;
use qf_pipeline::stop::Stop;
use qf_pipeline::write::ShardFormat;

use crate::azurite::Azurite;
use crate::loader::{config, run, write_shards};
use crate::{options, resolve};

#[test]
fn azurite_lists_and_reads() {
    let Some(azurite) = Azurite::start("azurite_lists_and_reads") else {
        return;
    };
    let folder = tempfile::tempdir().unwrap();
    let local = write_shards(folder.path(), ShardFormat::Tar);
    for number in 0..3 {
        for ending in ["tar", "tar.qfidx"] {
            let file = format!("s-{number}.{ending}");
            azurite.put(&format!("p/{file}"), &folder.path().join(file));
        }
    }
    azurite.put("d//x.tar", &folder.path().join("s-0.tar"));
    assert_eq!(azurite.blobs().len(), 7);
    let options = RemoteOptions {
        env: azurite
            .env()
            .map(|(name, value)| (name.to_owned(), value))
            .to_vec(),
        ..options()
    };
    let expected = run(config(ShuffleMode::Full), &local, None);
    for spec in [
        "az://shards/p/s-*.tar",
        "az://shards/p/s-{0..2}.tar",
        "az://shards/p/",
    ] {
        let remote = resolve(spec, &options).unwrap();
        assert!(
            run(config(ShuffleMode::Full), &remote, None) == expected,
            "{spec}"
        );
    }
    // Beside a blob that is not there; empty segments of names.
    let remote = resolve("az://shards/d//*.tar", &options).unwrap();
    assert_eq!(remote[0].name.as_ref(), "az://shards/d//x.tar");
    let found = ShardIndex::find(&remote[0], &Stop::default()).unwrap();
    assert_eq!(found, Found::Absent);
    // The same but for the state, which knows the shard's name.
    let batches = |shards: &[ShardLocation]| -> Vec<_> {
        let seen = run(config(ShuffleMode::Shards), shards, None);
        seen.into_iter()
            .map(|(keys, pixels, _)| (keys, pixels))
            .collect()
    };
    assert!(batches(&remote) == batches(&local[..1]));
    let message = resolve("az://shards/q/*.tar", &options).unwrap_err();
    assert!(
        message.contains("nothing is below az://shards/q/"),
        "{message}"
    );
}
