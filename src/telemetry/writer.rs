//! Log lines on their way to standard error: a bounded queue with a thread of its own, so that whoever has stopped reading
//! them parks no call. What does not fit is dropped and counted, and the log says how many as soon as it is read again.

use std::io::{self, ErrorKind, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing_subscriber::fmt::MakeWriter;

use super::events;

/// What waits at most, in bytes: a thousand lines and more.
const MAX_WAITING: usize = 512 << 10;
/// How long the end of the program waits for the last lines.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);
/// Standard error that somebody made non-blocking is tried again after this long.
const AGAIN: Duration = Duration::from_millis(20);
/// The thread formats one line and writes: `memory.lock` pins all of its stack.
const STACK: usize = 256 << 10;

/// Takes whole lines and never waits; clones share the queue.
#[derive(Clone)]
pub(super) struct Writer(Arc<Shared>);

/// Waits at its end until the lines are written, for one second at most.
pub(super) struct Flush(Arc<Shared>);

#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    arrived: Condvar,
    written: Condvar,
}

#[derive(Default)]
struct Queue {
    waiting: Vec<u8>,
    /// Whether the thread holds lines that it has not written yet.
    writing: bool,
    closed: bool,
    /// Since the start.
    dropped: u64,
    /// As many of them have been told.
    told: u64,
}

/// Starts the thread that writes to standard error.
///
/// # Errors
/// When the system gives no thread.
pub(super) fn start() -> io::Result<(Writer, Flush)> {
    let shared = Arc::<Shared>::default();
    let thread = shared.clone();
    std::thread::Builder::new()
        .name("logs".to_owned())
        .stack_size(STACK)
        .spawn(move || thread.run(&mut io::stderr()))?;
    Ok((Writer(shared.clone()), Flush(shared)))
}

// === impl Writer ===

impl Write for Writer {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Writer {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

// === impl Shared ===

impl Shared {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut queue = self.queue();
        if queue.waiting.len() + line.len() > MAX_WAITING {
            queue.dropped += 1;
        } else {
            queue.waiting.extend_from_slice(line);
            self.arrived.notify_one();
        }
    }

    /// Writes until the queue is closed and empty.
    fn run(&self, out: &mut impl Write) {
        while let Some(lines) = self.next() {
            // A standard error that is gone takes its lines with it: there is nobody to tell.
            let _ = write_all(out, &lines);
            self.tell();
        }
    }

    fn next(&self) -> Option<Vec<u8>> {
        let mut queue = self.queue();
        queue.writing = false;
        while queue.waiting.is_empty() {
            self.written.notify_all();
            if queue.closed {
                return None;
            }
            queue = self.arrived.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
        queue.writing = true;
        Some(std::mem::take(&mut queue.waiting))
    }

    /// The sum rather than what is new, so that a notice which is dropped itself loses nothing.
    fn tell(&self) {
        let mut queue = self.queue();
        let (dropped, told) = (queue.dropped, queue.told);
        queue.told = dropped;
        drop(queue);
        if dropped != told {
            let help = "whatever reads standard error was slower than the log; calls were not held up";
            tracing::warn!(event = events::LOG_LINES_DROPPED, dropped, help, "log lines were dropped since the start");
        }
    }
}

fn write_all(out: &mut impl Write, mut lines: &[u8]) -> io::Result<()> {
    while !lines.is_empty() {
        match out.write(lines) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => lines = lines.get(count..).unwrap_or_default(),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(AGAIN),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

// === impl Flush ===

impl Drop for Flush {
    fn drop(&mut self) {
        let until = Instant::now() + FLUSH_WITHIN;
        let mut queue = self.0.queue();
        queue.closed = true;
        self.0.arrived.notify_all();
        while queue.writing || !queue.waiting.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            queue = self.0.written.wait_timeout(queue, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that takes a few bytes at a time and is not always ready.
    #[derive(Default)]
    struct Slow {
        taken: Vec<u8>,
        turns: usize,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.turns += 1;
            match self.turns % 3 {
                0 => Err(ErrorKind::WouldBlock.into()),
                1 => Err(ErrorKind::Interrupted.into()),
                _ => {
                    let count = bytes.len().min(5);
                    self.taken.extend_from_slice(&bytes[..count]);
                    Ok(count)
                }
            }
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_fits_is_written_whole_and_in_order() {
        let shared = Shared::default();
        shared.push(b"first line\n");
        shared.push(b"second line\n");
        shared.queue().closed = true;
        let mut out = Slow::default();
        shared.run(&mut out);
        assert_eq!(out.taken, b"first line\nsecond line\n");
    }

    #[test]
    fn what_does_not_fit_is_counted_and_never_waited_for() {
        let shared = Shared::default();
        let line = [b'x'; 1024];
        for _ in 0..(MAX_WAITING / line.len() + 3) {
            shared.push(&line);
        }
        let queue = shared.queue();
        assert_eq!((queue.waiting.len(), queue.dropped), (MAX_WAITING, 3));
    }

    #[test]
    fn the_end_waits_for_the_last_line() {
        let shared = Arc::<Shared>::default();
        let (thread, out) = (shared.clone(), Arc::new(Mutex::new(Slow::default())));
        let sink = out.clone();
        let writer = std::thread::spawn(move || thread.run(&mut *sink.lock().expect("ours alone")));
        shared.push(&[b'x'; 100]);
        drop(Flush(shared));
        writer.join().expect("the thread ends once the queue is closed and empty");
        assert_eq!(out.lock().expect("free again").taken.len(), 100);
    }
}
