//! All tests of the workspace as one binary.

/// Archives of every kind, against Python's tarfile.
mod archives;
/// Azure's blobs, by Microsoft's own stand-in.
mod azurite;
/// `bench/gpu.sh`, rehearsed on the CPU.
mod bench_gpu;
/// Finds the programs under test.
mod bin;
/// Inputs that once went wrong.
mod cases;
/// Every file of the collections through every path.
mod corpora;
/// Several ranks: their mathematics, and `qftrain` with them.
mod ddp;
/// README and the guide: commands, options, links.
mod documents;
/// The examples of both libraries.
mod examples;
/// What the system does to a program.
mod faults;
/// Installing, calling without knowing, presets and settings.
mod first_steps;
/// The network, the optimiser and the processors against numbers of the reference.
mod golden;
/// Archives and images made to break readers.
mod hostile;
/// Image files and the same images in shards, on real photographs.
mod image_files;
/// Several captions of an image as samples of their own.
mod image_ids;
/// Corruption that parses.
mod integrity;
/// Shards exchanged with Python's `webdataset` and `datasets`.
mod interop;
/// The order, memory and start of the loader, from the command line.
mod loader_cli;
/// `qfdata preview` as a user runs it.
mod preview_cli;
/// Profiles and traces of both programs.
mod profile_cli;
/// Published weights of a real BERT.
mod published;
/// Checkpoints of runs that were killed or damaged, and non-finite numbers.
mod resume_cli;
/// The same batches from every shard format and any number of threads.
mod same_batches;
/// `qftrain selfcheck` as a user runs it.
mod selfcheck_cli;
/// `qfdata shard` as a user runs it.
mod shard_cli;
/// `qfdata shard` downloads, from a server with faults.
mod shard_downloads;
/// What `qfdata shard` does to images, and what it says of them.
mod shard_images;
/// `qfdata plan`, and its parts on many machines.
mod shard_parts;
/// `qfdata shard`, killed and started again.
mod shard_resume;
/// Every kind of input of `qfdata shard`, written by the programs that such inputs come from.
mod shard_sources;
/// `qfdata shard` into an object store.
mod shard_store;
/// `qfdata synth` as a user runs it.
mod synth_cli;
/// Finds test data, and says what it does not find.
mod test_data;
/// `qftrain` as a user runs it.
mod train_cli;
/// What was trained in use: validation, evaluation, captions, scores.
mod use_cli;
/// Weights and tokenizers that belong together, and what is refused.
mod vocabulary_cli;
/// Watching a run: its log, TensorBoard, its report.
mod watch_cli;
/// Weights in and out, against PyTorch and transformers, and from a stand-in of the hub.
mod weights;
