//! Work that is reported to the display of the program.

use std::{
    io::{self, Read},
    sync::{
        OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

/// Display of the program.
type Display = Box<dyn Fn(&Work) + Send + Sync>;

static DISPLAY: OnceLock<Display> = OnceLock::new();
static NEXT: AtomicU64 = AtomicU64::new(0);

/// Sets the display of the program: `display` is called when work begins, advances and ends, on the
/// thread that does it, and should return at once. The first display of a program stays.
///
/// ```
/// use burn_lora_io::progress::{Work, observe};
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// static DONE: AtomicU64 = AtomicU64::new(0);
/// observe(|work| DONE.store(work.done(), Ordering::Relaxed));
/// let work = Work::items("counting", 10);
/// work.advance(3);
/// assert_eq!((work.what(), work.total(), DONE.load(Ordering::Relaxed)), ("counting", Some(10), 3));
/// ```
pub fn observe(display: impl Fn(&Work) + Send + Sync + 'static) {
    DISPLAY.get_or_init(|| Box::new(display));
}

/// What work is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// Things: layers, prompts, examples.
    Items,
}

/// Work that may take long. It begins where it is created, and ends where it is dropped.
#[derive(Debug)]
pub struct Work {
    id: u64,
    what: String,
    unit: Unit,
    total: Option<u64>,
    done: AtomicU64,
    over: AtomicBool,
}

impl Work {
    /// Begins work that is counted in bytes. `what` is a verb: `loading`.
    pub fn bytes(what: impl Into<String>, total: u64) -> Self {
        Self::new(what.into(), Unit::Bytes, Some(total))
    }

    /// Begins work on a number of things.
    pub fn items(what: impl Into<String>, total: usize) -> Self {
        Self::new(what.into(), Unit::Items, Some(total as u64))
    }

    /// Begins work on a number of things that is not known.
    pub fn unknown(what: impl Into<String>) -> Self {
        Self::new(what.into(), Unit::Items, None)
    }

    fn new(what: String, unit: Unit, total: Option<u64>) -> Self {
        let id = NEXT.fetch_add(1, Ordering::Relaxed);
        let (done, over) = Default::default();
        let work = Self { id, what, unit, total, done, over };
        work.report();
        work
    }

    /// Reports that more is done.
    pub fn advance(&self, amount: u64) {
        self.done.fetch_add(amount, Ordering::Relaxed);
        self.report();
    }

    /// Number of the work, which no other of the process has.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// What is done.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// What it is counted in.
    pub fn unit(&self) -> Unit {
        self.unit
    }

    /// How much is done.
    pub fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// How much there is to do, if that is known.
    pub fn total(&self) -> Option<u64> {
        self.total
    }

    /// Returns `true` at the last report: the work is done, or was given up.
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    fn report(&self) {
        if let Some(display) = DISPLAY.get() {
            display(self);
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.report();
    }
}

/// A reader that reports what it reads.
#[derive(Debug)]
pub struct Counted<'a, R> {
    reader: R,
    work: &'a Work,
}

impl<'a, R> Counted<'a, R> {
    /// Reports the bytes of a reader as those of this work.
    pub fn new(reader: R, work: &'a Work) -> Self {
        Self { reader, work }
    }
}

impl<R: Read> Read for Counted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let bytes = self.reader.read(buffer)?;
        self.work.advance(bytes as u64);
        Ok(bytes)
    }
}
