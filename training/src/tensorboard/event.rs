//! The messages of event files in Protocol Buffers' encoding: those fields of TensorBoard's
//! `event.proto`, `summary.proto` and `tensor.proto` that are written here.

/// A message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    fn key(&mut self, field: u64, wire_type: u64) {
        self.varint(field << 3 | wire_type);
    }

    fn int(mut self, field: u64, value: u64) -> Self {
        self.key(field, 0);
        self.varint(value);
        self
    }

    fn double(mut self, field: u64, value: f64) -> Self {
        self.key(field, 1);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn float(mut self, field: u64, value: f32) -> Self {
        self.key(field, 5);
        self.0.extend(value.to_le_bytes());
        self
    }

    fn bytes(mut self, field: u64, bytes: &[u8]) -> Self {
        self.key(field, 2);
        self.varint(bytes.len() as u64);
        self.0.extend(bytes);
        self
    }

    fn doubles(self, field: u64, values: impl Iterator<Item = f64>) -> Self {
        let packed: Vec<u8> = values.flat_map(f64::to_le_bytes).collect();
        self.bytes(field, &packed)
    }

    fn message(self, field: u64, message: Message) -> Self {
        self.bytes(field, &message.0)
    }
}

/// One value of an event.
pub(super) struct SummaryValue(Message);

impl SummaryValue {
    fn tagged(tag: &str) -> Message {
        Message::default().bytes(1, tag.as_bytes())
    }

    pub fn scalar(tag: &str, value: f64) -> Self {
        Self(Self::tagged(tag).float(2, value as f32))
    }

    /// Markdown, as the plugin `text` shows it.
    pub fn text(tag: &str, markdown: &str) -> Self {
        const DT_STRING: u64 = 7;
        let plugin = Message::default().bytes(1, b"text");
        // No dimensions: those of a list would make a table of it.
        let tensor = Message::default()
            .int(1, DT_STRING)
            .message(2, Message::default())
            .bytes(8, markdown.as_bytes());
        let metadata = Message::default().message(1, plugin);
        Self(Self::tagged(tag).message(8, tensor).message(9, metadata))
    }

    /// Of values in buckets of one width; what is not finite does not count.
    pub fn histogram(tag: &str, values: &[f64]) -> Self {
        let values = values.iter().copied().filter(|x| x.is_finite());
        let values: Vec<f64> = values.collect();
        let lowest = values.iter().copied().fold(f64::INFINITY, f64::min);
        let highest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let mut histogram = Message::default();
        if !values.is_empty() {
            let buckets = buckets(&values, lowest, highest);
            histogram = histogram
                .double(1, lowest)
                .double(2, highest)
                .double(3, values.len() as f64)
                .double(4, values.iter().sum())
                .double(5, values.iter().map(|x| x * x).sum())
                .doubles(6, buckets.iter().map(|(limit, _)| *limit))
                .doubles(7, buckets.iter().map(|(_, count)| *count));
        }
        Self(Self::tagged(tag).message(5, histogram))
    }
}

const BUCKETS: usize = 30;

/// Upper limits and counts; the first bucket begins at `lowest`.
fn buckets(values: &[f64], lowest: f64, highest: f64) -> Vec<(f64, f64)> {
    // TensorBoard takes a bucket's lower limit from the one before it.
    let mut buckets = vec![(lowest, 0.0)];
    let width = (highest - lowest) / BUCKETS as f64;
    if width <= 0.0 {
        buckets[0].1 = values.len() as f64;
        return buckets;
    }
    let limit = |i: usize| match i {
        BUCKETS => highest,
        _ => lowest + width * i as f64,
    };
    buckets.extend((1..=BUCKETS).map(|i| (limit(i), 0.0)));
    for value in values {
        let place = ((value - lowest) / width) as usize;
        buckets[place.min(BUCKETS - 1) + 1].1 += 1.0;
    }
    buckets
}

/// What a file begins with.
pub(super) fn file_version(wall_time: f64) -> Vec<u8> {
    Message::default()
        .double(1, wall_time)
        .bytes(3, b"brain.Event:2")
        .0
}

/// Tells a reader that has seen an earlier file to forget all that it holds.
pub(super) fn starts_anew(wall_time: f64) -> Vec<u8> {
    const START: u64 = 1;
    let session_log = Message::default().int(1, START);
    Message::default()
        .double(1, wall_time)
        .int(2, 0)
        .message(7, session_log)
        .0
}

/// Values of one step.
pub(super) fn summary(
    wall_time: f64,
    step: usize,
    values: impl IntoIterator<Item = SummaryValue>,
) -> Vec<u8> {
    let values = values.into_iter();
    let summary = values.fold(Message::default(), |all, value| all.message(1, value.0));
    Message::default()
        .double(1, wall_time)
        .int(2, step as u64)
        .message(5, summary)
        .0
}

/// The step of a [`summary`]; none of other events.
pub(super) fn step_of_summary(event: &[u8]) -> Option<u64> {
    let (mut rest, mut step, mut has_summary) = (event, None, false);
    while !rest.is_empty() {
        let key = take_varint(&mut rest)?;
        let length = match key & 7 {
            0 => {
                let value = take_varint(&mut rest)?;
                step = step.or((key >> 3 == 2).then_some(value));
                continue;
            }
            1 => 8,
            5 => 4,
            2 => usize::try_from(take_varint(&mut rest)?).ok()?,
            _ => return None,
        };
        has_summary |= key >> 3 == 5;
        rest = rest.get(length..)?;
    }
    step.filter(|_| has_summary)
}

fn take_varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_tells_its_step() {
        let value = || [SummaryValue::scalar("train/loss", 0.5)];
        for step in [1, 127, 128, 300, 1 << 40] {
            assert_eq!(
                step_of_summary(&summary(1.0, step, value())),
                Some(step as u64)
            );
        }
        assert_eq!(step_of_summary(&file_version(1.0)), None);
        assert_eq!(step_of_summary(&starts_anew(1.0)), None);
        let whole = summary(1.0, 7, value());
        for cut in 0..whole.len() {
            // No panic; a record that is whole is never cut.
            step_of_summary(&whole[..cut]);
        }
    }

    /// Bytes that protobuf's own encoder writes for these messages.
    #[test]
    fn messages_have_protobufs_bytes() {
        let event = summary(1.5, 300, [SummaryValue::scalar("a", 2.0)]);
        let expected = [
            &[0x09][..],
            &1.5f64.to_le_bytes(),
            &[0x10, 0xac, 0x02],
            &[0x2a, 0x0a, 0x0a, 0x08, 0x0a, 0x01, b'a', 0x15],
            &2.0f32.to_le_bytes(),
        ];
        assert_eq!(event, expected.concat());
    }

    #[test]
    fn every_value_is_in_one_bucket() {
        let values = [0.0, 0.0, 1.0, 2.0, 29.9, 30.0];
        let found = buckets(&values, 0.0, 30.0);
        assert_eq!(found.len(), BUCKETS + 1);
        assert_eq!(found.iter().map(|b| b.1).sum::<f64>(), 6.0);
        assert_eq!((found[1], found[2].1, found[3].1), ((1.0, 2.0), 1.0, 1.0));
        assert_eq!(found[BUCKETS], (30.0, 2.0));
        assert_eq!(buckets(&[3.0, 3.0], 3.0, 3.0), [(3.0, 2.0)]);
        for values in [
            &[][..],
            &[f64::NAN],
            &[1e300, -1e300],
            &[f64::INFINITY, 1.0],
        ] {
            SummaryValue::histogram("a", values);
        }
    }
}
