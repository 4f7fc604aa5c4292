//! Arrow IPC shards, stream and file format, in the layout of Hugging Face datasets.
