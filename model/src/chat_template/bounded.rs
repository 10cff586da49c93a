//! Output that cannot grow without end.

/// Bytes that one rendering may write.
pub(super) const MAX_OUTPUT: usize = 16 << 20;

/// Collects output up to [`MAX_OUTPUT`] bytes.
#[derive(Default)]
pub(super) struct Bounded {
    pub bytes: Vec<u8>,
    pub overflown: bool,
}

impl std::io::Write for &mut Bounded {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.bytes.len() + bytes.len() > MAX_OUTPUT {
            self.overflown = true;
            return Err(std::io::Error::other("the output is too long"));
        }
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
