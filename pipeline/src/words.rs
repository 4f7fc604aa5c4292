//! Numbers with their nouns, for messages.

/// `1 shard`, `2 shards`.
pub fn counted(count: u64, one: &str, many: &str) -> String {
    match count {
        1 => format!("1 {one}"),
        _ => format!("{count} {many}"),
    }
}
