//! One span into one block: by way of the page cache where that holds it, directly from the disk where
//! not, and out of memory where there is no file.
//!
//! Direct reads leave the page cache as it is, and cost one copy less. They want the file opened anew,
//! by its name; where another file has taken that, or a file system has no such reads (tmpfs), they go
//! through the cache as they would otherwise. No byte is taken from a map of the file: one that was cut
//! short is an error here, and would be the end of the process there.

use std::fs::File;
#[cfg(target_os = "linux")]
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::ops::Range;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
#[cfg(target_os = "linux")]
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

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

/// What a reading thread keeps from one span to the next.
#[derive(Default)]
pub(super) struct Opener {
    /// The file, by its identity, that was opened last for direct reads; none where it cannot be.
    direct: Option<((u64, u64), Option<File>)>,
}

impl Opener {
    /// Reads `span` into `block`, and says where in it the bytes are.
    pub(super) fn read(&mut self, span: &Span, block: &mut [u8]) -> Result<Range<usize>> {
        if span.is_cut() {
            return join(span, block);
        }
        let is_cold = match span.stored() {
            Some((file, offset)) => {
                !is_resident(span.bytes()) || !is_cached(file, offset, span.num_bytes())
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
        let read = file.file.read_exact_at(&mut block[..len], offset as u64);
        read.map_err(|error| Error::read(&file.path, &error))?;
        Ok(0..len)
    }

    /// Reads whole sectors around bytes `offset..offset + len` of the file; none where it cannot.
    fn direct(
        &mut self,
        file: &StoredFile,
        offset: usize,
        len: usize,
        block: &mut [u8],
    ) -> Result<Option<Range<usize>>> {
        if block.as_ptr().align_offset(ALIGN_BYTES) != 0 {
            return Ok(None);
        }
        let first = offset / ALIGN_BYTES * ALIGN_BYTES;
        let (skipped, whole) =
            (offset - first, (offset + len).next_multiple_of(ALIGN_BYTES) - first);
        let Some(open) = self.open(file) else { return Ok(None) };
        let mut got = 0;
        while got < skipped + len {
            match open.read_at(&mut block[got..whole], (first + got) as u64) {
                Ok(0) => return Err(Error::read(&file.path, &ErrorKind::UnexpectedEof.into())),
                Ok(more) => got += more,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // What the disk has against it, the other way will tell.
                Err(_) => {
                    self.direct = Some((file.identity, None));
                    return Ok(None);
                }
            }
        }
        Ok(Some(skipped..skipped + len))
    }

    /// The file, for direct reads, if there are any of it.
    fn open(&mut self, file: &StoredFile) -> Option<&File> {
        if self.direct.as_ref().is_none_or(|(identity, _)| *identity != file.identity) {
            self.direct = Some((file.identity, open_direct(file)));
        }
        self.direct.as_ref().and_then(|(_, open)| open.as_ref())
    }
}

/// The file opened anew, if its name still means it.
#[cfg(target_os = "linux")]
fn open_direct(file: &StoredFile) -> Option<File> {
    let mut options = OpenOptions::new();
    // A pipe that has taken the name would be waited for otherwise.
    options.read(true).custom_flags(libc::O_DIRECT | libc::O_NONBLOCK);
    let opened = options.open(&file.path).ok()?;
    let metadata = opened.metadata().ok()?;
    ((metadata.dev(), metadata.ino()) == file.identity).then_some(opened)
}

#[cfg(not(target_os = "linux"))]
fn open_direct(_: &StoredFile) -> Option<File> {
    None
}

/// Can most of a few bytes of the file be read without waiting? Who neither owns a file nor may write it
/// is told that all of its pages are in memory, so that is asked as well; where the system does not
/// say, they can.
fn is_cached(file: &StoredFile, offset: usize, len: usize) -> bool {
    let samples = [0, len / 2, len.saturating_sub(1)];
    let waits = samples.iter().filter(|at| would_wait(&file.file, (offset + **at) as u64)).count();
    2 * waits <= samples.len()
}

/// Reads all pieces of a span, by way of the page cache, however cold it is: what the system reads ahead is
/// between them, and may be what another rank wants.
fn join(span: &Span, block: &mut [u8]) -> Result<Range<usize>> {
    let mut got = 0;
    for range in span.ranges() {
        let to = &mut block[got..got + range.len()];
        match span.owner().file() {
            None => to.copy_from_slice(&span.owner().bytes()[range.clone()]),
            Some(file) => {
                let read = file.file.read_exact_at(to, range.start as u64);
                read.map_err(|error| Error::read(&file.path, &error))?;
            }
        }
        got += range.len();
    }
    Ok(0..got)
}

/// Copies the bytes from where they lie.
fn copy(span: &Span, block: &mut [u8]) -> Range<usize> {
    block[..span.num_bytes()].copy_from_slice(span.bytes());
    0..span.num_bytes()
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
    use std::path::Path;
    use std::sync::Arc;

    use super::*;
    use crate::reader::tests::{Folder, Stored, bytes};
    use crate::reader::{BLOCK_BYTES, HeapBlock, PIECE_BYTES};
    use crate::tensor::Bytes;

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
        if opener.direct.as_ref().is_some_and(|(_, open)| open.is_none()) {
            eprintln!("SKIPPED in part: no direct reads in {}", folder.0.display());
        }
        // Not aligned: the other way.
        let span = Span::new(owner, 1..5000);
        let got = opener.read_by(Way::Direct, &span, &mut block[1..BLOCK_BYTES]).expect("it reads");
        assert_eq!(&block[1..][got], span.bytes());
    }

    #[test]
    fn pieces_come_together() {
        let folder = Folder::new("pieces");
        let all = bytes(300_000);
        let stored = Arc::new(Stored::new(&folder.0.join("data"), &all));
        let pieces: Vec<Range<usize>> = (0..40).map(|i| i * 7000 + i..i * 7000 + 4096).collect();
        let want: Vec<u8> = pieces.iter().flat_map(|range| all[range.clone()].to_vec()).collect();
        let mut block = HeapBlock::default();
        for owner in [stored.clone() as Arc<dyn crate::tensor::Bytes>, Arc::new(all.clone())] {
            let span = Span::of_pieces(owner, pieces.iter().cloned());
            for range in [0..want.len(), 0..1, 4095..4097, 10_000..50_001, 7..7] {
                let part = span.part(range.clone());
                let got = Opener::default().read(&part, block.as_mut()).expect("it reads");
                assert_eq!(&block.as_mut()[got], &want[range]);
            }
        }
        let file = OpenOptions::new().write(true).open(folder.0.join("data")).expect("it opens");
        file.set_len(200_000).expect("it is cut");
        let span = Span::of_pieces(stored, pieces.into_iter());
        let error = Opener::default().read(&span, block.as_mut()).expect_err("it is cut short");
        assert!(matches!(error, Error::Corrupt { .. }), "{error}");
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

    /// A file that no page of is in the page cache: written directly. None where that cannot be.
    fn cold(path: &Path, contents: &[u8]) -> Option<Stored> {
        let (mut block, len) = (HeapBlock::default(), contents.len());
        assert!(len.is_multiple_of(ALIGN_BYTES) && len <= BLOCK_BYTES);
        block.as_mut()[..len].copy_from_slice(contents);
        let mut options = OpenOptions::new();
        options.write(true).create(true).custom_flags(libc::O_DIRECT);
        options.open(path).ok()?.write_all_at(&block.as_mut()[..len], 0).ok()?;
        Some(Stored::of(path, contents))
    }

    #[test]
    fn a_cold_file_is_read_directly_and_stays_cold() {
        let folder = Folder::new("cold");
        let len = 1 << 20;
        let Some(owner) = cold(&folder.0.join("data"), &bytes(len)) else {
            return eprintln!("SKIPPED: no direct writes in {}", folder.0.display());
        };
        let owner = Arc::new(owner);
        let file = owner.file().expect("stored");
        // Asking has the system fetch a few pages, so each place is asked of once.
        if !would_wait(&file.file, len as u64 - 1) {
            return eprintln!("SKIPPED: what is written directly is cached: no file is cold here");
        }
        let (mut opener, mut block) = (Opener::default(), HeapBlock::default());
        let span = Span::new(owner.clone(), 5000..900_000);
        let got = opener.read(&span, block.as_mut()).expect("it reads");
        assert_eq!(&block.as_mut()[got.clone()], span.bytes());
        assert_eq!(got.start, 5000 % ALIGN_BYTES, "whole sectors were read");
        assert!(matches!(opener.direct, Some((_, Some(_)))), "not opened for direct reads");
        let waits = [100_000, 300_000, 700_000].map(|at| would_wait(&file.file, at));
        assert_eq!(waits, [true; 3], "the page cache has it now");
        // Once it is cached, it is read from there.
        file.file.read_exact_at(&mut block.as_mut()[..len], 0).expect("it reads");
        assert!(is_cached(file, 0, len));
        assert_eq!(opener.read(&span, block.as_mut()), Ok(0..span.num_bytes()));
        assert_eq!(&block.as_mut()[..span.num_bytes()], span.bytes());
    }

    #[test]
    fn memory_in_use_is_resident() {
        assert!(is_resident(&bytes(PIECE_BYTES)) && is_resident(&[]) && is_resident(&[1]));
    }
}
