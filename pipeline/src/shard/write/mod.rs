//! Writes shards: atomic files in every format the reader knows.
