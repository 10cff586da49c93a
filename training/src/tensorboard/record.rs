//! The framing of event files, TFRecord's: length u64, its checksum, the bytes, their checksum; all
//! little-endian.

/// The record of `data`.
pub(super) fn framed(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    let mut record = Vec::with_capacity(data.len() + 16);
    record.extend(length);
    record.extend(masked_crc32c(&length).to_le_bytes());
    record.extend(data);
    record.extend(masked_crc32c(data).to_le_bytes());
    record
}

/// What the records at the beginning of `bytes` hold, up to the first that is not whole.
pub(super) fn whole_records(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((data, behind)) = first_record(bytes) {
        found.push(data);
        bytes = behind;
    }
    found
}

fn first_record(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = checked(bytes, 8)?;
    let length = u64::from_le_bytes(length.try_into().ok()?);
    checked(rest, usize::try_from(length).ok()?)
}

/// The first `length` bytes, where the checksum behind them is theirs, and what lies behind it.
fn checked(bytes: &[u8], length: usize) -> Option<(&[u8], &[u8])> {
    let (data, rest) = bytes.split_at_checked(length)?;
    let (sum, behind) = rest.split_first_chunk::<4>()?;
    (u32::from_le_bytes(*sum) == masked_crc32c(data)).then_some((data, behind))
}

/// The checksum of TFRecord: CRC-32C, rotated and moved so that a checksum of bytes that hold
/// checksums is a good one.
fn masked_crc32c(bytes: &[u8]) -> u32 {
    crc32c(bytes).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32 by Castagnoli's polynomial (RFC 3720).
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, byte| {
        TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8)
    })
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

#[cfg(test)]
mod tests {
    use super::*;

    /// Values of RFC 3720, B.4.
    #[test]
    fn checksums_are_those_of_the_standard() {
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(
            crc32c(&std::array::from_fn::<u8, 32, _>(|i| i as u8)),
            0x46dd_794e
        );
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn records_are_read_up_to_the_first_that_is_torn_or_damaged() {
        let records: [&[u8]; 4] = [b"one", b"", b"three", b"four"];
        let bytes = records.map(framed).concat();
        assert_eq!(whole_records(&bytes), records);
        let before = bytes.len() - framed(b"four").len();
        for cut in before..bytes.len() {
            assert_eq!(whole_records(&bytes[..cut]), records[..3], "{cut}");
        }
        for place in before - framed(b"three").len()..before {
            let mut damaged = bytes.clone();
            damaged[place] ^= 0x10;
            assert_eq!(whole_records(&damaged), records[..2], "{place}");
        }
    }
}
