//! One span into one block: by way of the page cache where that holds it, directly from the disk where
//! not, and out of memory where there is no file, or another one has taken its name.
//!
//! Direct reads leave the page cache as it is, and cost one copy less; where a file system has none
//! (tmpfs), reads go through the cache as they would otherwise.

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::tensor::{Span, StoredFile};

/// Direct reads begin and end on multiples of this, in the file and in memory: the sectors of any disk.
pub(super) const ALIGN_BYTES: usize = 4096;
/// Pages of a span that are looked up in the page cache.
const SAMPLES: usize = 16;
/// Distance between these, at least, and what they are aligned to: the largest page of any machine.
const SAMPLE_BYTES: usize = 64 << 10;

/// How the bytes of a file come to memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// By way of the page cache.
    Buffered,
    /// Not so.
    Direct,
}

/// What a reading thread keeps from one span to the next: the file it has open.
#[derive(Default)]
pub(super) struct Opener {
    last: Option<(StoredFile, Way, File)>,
    /// A file that cannot be read directly.
    refuses: Option<PathBuf>,
}

impl Opener {
    /// Reads `span` into `block`, and says where in it the bytes are.
    pub(super) fn read(&mut self, span: &Span, block: &mut [u8]) -> Result<Range<usize>> {
        let is_cold = match span.stored() {
            Some((file, offset)) => {
                !is_resident(span.bytes()) || !self.is_cached(file, offset, span.num_bytes())
            }
            None => false,
        };
        self.read_by(if is_cold { Way::Direct } else { Way::Buffered }, span, block)
    }

    fn read_by(&mut self, way: Way, span: &Span, block: &mut [u8]) -> Result<Range<usize>> {
        let Some((file, offset)) = span.stored() else { return Ok(copy(span, block)) };
        let len = span.num_bytes();
        if way == Way::Direct
            && let Some(range) = self.direct(file, offset, len, block)?
        {
            return Ok(range);
        }
        let Some(open) = self.open(file, Way::Buffered) else { return Ok(copy(span, block)) };
        open.read_exact_at(&mut block[..len], offset as u64).map_err(|error| {
            match error.kind() {
                ErrorKind::UnexpectedEof => shrunk(file),
                _ => Error::io(&file.path, "read", &error),
            }
        })?;
        Ok(0..len)
    }

    /// Can most of a few bytes of the file be read without waiting? Who neither owns a file nor may
    /// write it is told that all of its pages are in memory, so that is asked as well; where the
    /// system does not say, they can.
    fn is_cached(&mut self, file: &StoredFile, offset: usize, len: usize) -> bool {
        let Some(open) = self.open(file, Way::Buffered) else { return true };
        let samples = [0, len / 2, len.saturating_sub(1)];
        let waits = samples.iter().filter(|at| would_wait(open, (offset + **at) as u64)).count();
        2 * waits <= samples.len()
    }

    /// Reads whole sectors around bytes `offset..offset + len` of the file; none where it cannot.
    fn direct(
        &mut self,
        file: &StoredFile,
        offset: usize,
        len: usize,
        block: &mut [u8],
    ) -> Result<Option<Range<usize>>> {
        let is_aligned = block.as_ptr().align_offset(ALIGN_BYTES) == 0;
        if !is_aligned || self.refuses.as_ref() == Some(&file.path) {
            return Ok(None);
        }
        let first = offset / ALIGN_BYTES * ALIGN_BYTES;
        let (skipped, whole) =
            (offset - first, (offset + len).next_multiple_of(ALIGN_BYTES) - first);
        let Some(open) = self.open(file, Way::Direct) else { return Ok(self.refused(file)) };
        let mut got = 0;
        while got < skipped + len {
            match open.read_at(&mut block[got..whole], (first + got) as u64) {
                Ok(0) => return Err(shrunk(file)),
                Ok(more) => got += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What the disk has against it, the other way will tell.
                Err(_) => return Ok(self.refused(file)),
            }
        }
        Ok(Some(skipped..skipped + len))
    }

    fn refused<T>(&mut self, file: &StoredFile) -> Option<T> {
        self.refuses = Some(file.path.clone());
        None
    }

    /// The file, if its name still means the one that was mapped.
    fn open(&mut self, file: &StoredFile, way: Way) -> Option<&File> {
        let is_open = |(last, by, _): &(StoredFile, Way, File)| last == file && *by == way;
        if !self.last.as_ref().is_some_and(is_open) {
            let mut options = OpenOptions::new();
            options.read(true);
            // A pipe that has taken the name would be waited for otherwise.
            #[cfg(target_os = "linux")]
            options.custom_flags(match way {
                Way::Direct => libc::O_DIRECT | libc::O_NONBLOCK,
                Way::Buffered => libc::O_NONBLOCK,
            });
            let opened = options.open(&file.path).ok()?;
            let metadata = opened.metadata().ok()?;
            if (metadata.dev(), metadata.ino()) != file.identity {
                return None;
            }
            self.last = Some((file.clone(), way, opened));
        }
        self.last.as_ref().map(|(_, _, open)| open)
    }
}

/// Copies the bytes from where they are mapped, or lie.
fn copy(span: &Span, block: &mut [u8]) -> Range<usize> {
    block[..span.num_bytes()].copy_from_slice(span.bytes());
    0..span.num_bytes()
}

fn shrunk(file: &StoredFile) -> Error {
    Error::corrupt(&file.path, "the file shrank while it was read")
}

/// Are most of the pages of these mapped bytes in memory? A few are asked for; where the system does
/// not say, they are.
fn is_resident(bytes: &[u8]) -> bool {
    let first = bytes.as_ptr().align_offset(SAMPLE_BYTES);
    let step = (bytes.len() / SAMPLES).next_multiple_of(SAMPLE_BYTES).max(SAMPLE_BYTES);
    let (mut asked, mut absent) = (0, 0);
    for at in (first..bytes.len()).step_by(step) {
        asked += 1;
        absent += usize::from(is_absent(&bytes[at..]));
    }
    2 * absent <= asked
}

/// Does the system say that the page at the start of `bytes`, which is aligned to it, is not in memory?
#[allow(unsafe_code, reason = "no safe function asks")]
fn is_absent(bytes: &[u8]) -> bool {
    let mut resident = 1_u8;
    let start = bytes.as_ptr().cast_mut().cast();
    // SAFETY: one page that is mapped, since `bytes` begins there; one answer is written; no byte of
    // the page is read.
    let result = unsafe { libc::mincore(start, 1, (&raw mut resident).cast()) };
    result == 0 && resident & 1 == 0
}

/// Would the byte at `offset` have to come from the disk?
#[cfg(target_os = "linux")]
#[allow(unsafe_code, reason = "no safe function asks")]
fn would_wait(file: &File, offset: u64) -> bool {
    let mut byte = 0_u8;
    let buffer = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
    let Ok(offset) = libc::off_t::try_from(offset) else { return false };
    // SAFETY: the descriptor is open, and one byte has room for the one that is asked for.
    let got =
        unsafe { libc::preadv2(file.as_raw_fd(), &raw const buffer, 1, offset, libc::RWF_NOWAIT) };
    got < 0 && std::io::Error::last_os_error().kind() == ErrorKind::WouldBlock
}

#[cfg(not(target_os = "linux"))]
fn would_wait(_: &File, _: u64) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::reader::tests::{Folder, Stored, bytes};
    use crate::reader::{BLOCK_BYTES, HeapBlock, PIECE_BYTES};

    /// Offsets and lengths at, before and behind the ends of sectors and pieces.
    fn ranges(len: usize) -> Vec<Range<usize>> {
        let ends = [0, 1, 511, 512, 4095, 4096, 4097, 12_288, 100_000, PIECE_BYTES, len - 1, len];
        let pairs = ends.iter().flat_map(|&start| ends.map(|end| start..end));
        pairs.filter(|range| range.start <= range.end && range.len() <= PIECE_BYTES).collect()
    }

    #[test]
    fn every_way_gives_the_same_bytes() {
        let folder = Folder::new("ways");
        let len = PIECE_BYTES + 4096 * 3 + 17;
        let owner = Arc::new(Stored::new(&folder.0.join("data"), &bytes(len)));
        let mut opener = Opener::default();
        let mut block = HeapBlock::default();
        let block = block.as_mut();
        for way in [Way::Buffered, Way::Direct] {
            for range in ranges(len) {
                let span = Span::new(owner.clone(), range.clone());
                let got = opener.read_by(way, &span, block).expect("it reads");
                assert_eq!(&block[got], span.bytes(), "{way:?} {range:?}");
            }
        }
        if opener.refuses.is_some() {
            eprintln!("SKIPPED in part: no direct reads in {}", folder.0.display());
        }
        // Not aligned: the other way.
        let span = Span::new(owner, 1..5000);
        let got = opener.read_by(Way::Direct, &span, &mut block[1..BLOCK_BYTES]).expect("it reads");
        assert_eq!(&block[1..][got], span.bytes());
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let folder = Folder::new("short");
        let path = folder.0.join("data");
        let owner = Arc::new(Stored::new(&path, &bytes(40_000)));
        let file = OpenOptions::new().write(true).open(&path).expect("it opens");
        file.set_len(20_000).expect("it is cut");
        let mut block = HeapBlock::default();
        for way in [Way::Buffered, Way::Direct] {
            for range in [19_999..20_001, 20_000..20_001, 30_000..40_000, 0..40_000] {
                let span = Span::new(owner.clone(), range.clone());
                let error = Opener::default().read_by(way, &span, block.as_mut());
                let error = error.expect_err("it is cut short");
                assert!(
                    matches!(&error, Error::Corrupt { path: of, .. } if *of == path),
                    "{error}"
                );
            }
            let span = Span::new(owner.clone(), 19_000..20_000);
            let got = Opener::default().read_by(way, &span, block.as_mut()).expect("it reads");
            assert_eq!(&block.as_mut()[got], span.bytes(), "{way:?}");
        }
    }

    #[test]
    fn a_file_under_the_name_of_another_is_not_read() {
        let folder = Folder::new("replaced");
        let path = folder.0.join("data");
        let owner = Arc::new(Stored::new(&path, &bytes(10_000)));
        std::fs::write(folder.0.join("other"), vec![0; 10_000]).expect("written");
        std::fs::rename(folder.0.join("other"), &path).expect("renamed");
        let span = Span::new(owner, 10..9_000);
        let mut block = HeapBlock::default();
        for way in [Way::Buffered, Way::Direct] {
            let got = Opener::default().read_by(way, &span, block.as_mut()).expect("it reads");
            assert_eq!(&block.as_mut()[got], span.bytes(), "{way:?}");
        }
    }

    #[test]
    fn memory_in_use_is_resident() {
        assert!(is_resident(&bytes(PIECE_BYTES)) && is_resident(&[]) && is_resident(&[1]));
    }
}
