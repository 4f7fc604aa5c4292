//! The messages of an event file in protocol buffers' wire format, written by hand: they are few.
//!
//! Fields as in tensorboard/compat/proto/{event,summary,tensor,tensor_shape}.proto.

/// A message that is being written.
#[derive(Debug, Default)]
pub(super) struct Message(Vec<u8>);

/// Wire types of a field.
const VARINT: u64 = 0;
const FIXED_64: u64 = 1;
const BYTES: u64 = 2;
const FIXED_32: u64 = 5;

impl Message {
    pub(super) fn new() -> Message {
        Message::default()
    }

    fn varint(&mut self, mut value: u64) {
        loop {
            let low = (value & 0x7f) as u8;
            value >>= 7;
            if value == 0 {
                self.0.push(low);
                return;
            }
            self.0.push(low | 0x80);
        }
    }

    fn tag(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    /// An `int64`, `int32` or enumeration that is not negative.
    pub(super) fn int(mut self, field: u64, value: u64) -> Message {
        self.tag(field, VARINT);
        self.varint(value);
        self
    }

    pub(super) fn double(mut self, field: u64, value: f64) -> Message {
        self.tag(field, FIXED_64);
        self.0.extend(value.to_le_bytes());
        self
    }

    pub(super) fn float(mut self, field: u64, value: f32) -> Message {
        self.tag(field, FIXED_32);
        self.0.extend(value.to_le_bytes());
        self
    }

    /// A `repeated double`, packed.
    pub(super) fn doubles(self, field: u64, values: &[f64]) -> Message {
        let bytes: Vec<u8> = values
            .iter()
            .flat_map(|value| value.to_le_bytes())
            .collect();
        self.bytes(field, &bytes)
    }

    /// A `string` or `bytes`.
    pub(super) fn bytes(mut self, field: u64, value: &[u8]) -> Message {
        self.tag(field, BYTES);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    pub(super) fn text(self, field: u64, value: &str) -> Message {
        self.bytes(field, value.as_bytes())
    }

    pub(super) fn message(self, field: u64, value: Message) -> Message {
        self.bytes(field, &value.0)
    }

    pub(super) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples of protobuf.dev/programming-guides/encoding.
    #[test]
    fn messages_as_the_encoding_guide_has_them() {
        assert_eq!(Message::new().int(1, 150).into_bytes(), [0x08, 0x96, 0x01]);
        assert_eq!(
            Message::new().text(2, "testing").into_bytes(),
            [0x12, 0x07, 0x74, 0x65, 0x73, 0x74, 0x69, 0x6e, 0x67]
        );
        let inner = Message::new().int(1, 150);
        assert_eq!(
            Message::new().message(3, inner).into_bytes(),
            [0x1a, 0x03, 0x08, 0x96, 0x01]
        );
    }
}
