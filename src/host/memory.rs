//! Gives memory back that nobody needs: the pages of code that only start-up ran, and what a burst of calls has left with
//! the allocator. A daemon that stands on every control-plane node is measured by what it holds while nothing happens.

use std::time::Duration;

use tokio::time::Instant;

/// How often the heap is looked at.
const LOOK: Duration = Duration::from_secs(3);
/// What the process may have grown by before the heap is worth trimming, in bytes.
const WORTH_TRIMMING: usize = 1 << 20;
/// The longest pause between two trims while the process holds more than it once did.
const LAST_PAUSE: Duration = Duration::from_secs(60);

/// When the heap is trimmed. A trim in the middle of a burst finds little: what the burst still holds is freed later, and
/// nothing grows then. So a process that holds more than it once did is trimmed again, after pauses that grow.
struct Trims {
    /// What was left after the last trim; 0 before the first one.
    floor: usize,
    /// The least that was ever left.
    least: usize,
    pause: Duration,
    last: Instant,
}

/// Runs until it is aborted.
pub(super) async fn keep_small() {
    let mut trims = Trims::new(Instant::now());
    loop {
        tokio::time::sleep(LOOK).await;
        if trims.floor == 0 {
            release_code();
        }
        let held = private_bytes();
        if trims.due(held, Instant::now()) {
            // Takes the allocator's locks for a moment: not on a worker that calls wait for.
            let trimmed = tokio::task::spawn_blocking(|| {
                trim_heap();
                private_bytes()
            });
            trims.done(trimmed.await.unwrap_or(held), Instant::now());
        }
    }
}

// === impl Trims ===

impl Trims {
    fn new(now: Instant) -> Self {
        Self { floor: 0, least: usize::MAX, pause: LOOK, last: now }
    }

    /// Whether to trim a process that holds so much.
    fn due(&mut self, held: usize, now: Instant) -> bool {
        if self.floor == 0 || held > self.floor + WORTH_TRIMMING {
            self.pause = LOOK;
            return true;
        }
        self.floor = self.floor.min(held);
        self.least = self.least.min(held);
        held > self.least + WORTH_TRIMMING && now.duration_since(self.last) >= self.pause
    }

    /// A trim has left so much.
    fn done(&mut self, left: usize, now: Instant) {
        if left + WORTH_TRIMMING > self.floor {
            self.pause = (self.pause * 2).min(LAST_PAUSE);
        }
        self.floor = left.max(1);
        self.least = self.least.min(self.floor);
        self.last = now;
    }
}

/// What the process holds that is not a file's: resident less shared, of `/proc/self/statm` (proc(5)).
fn private_bytes() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let mut pages = text.split(' ').skip(1).map(|word| word.trim().parse::<usize>().unwrap_or(0));
    let (resident, shared) = (pages.next().unwrap_or(0), pages.next().unwrap_or(0));
    resident.saturating_sub(shared) * rustix::param::page_size()
}

#[cfg(target_env = "gnu")]
fn trim_heap() {
    // SAFETY: no argument is a pointer; glibc locks its own heap while it trims.
    #[allow(unsafe_code)]
    unsafe {
        libc::malloc_trim(0);
    }
}

#[cfg(not(target_env = "gnu"))]
fn trim_heap() {}

/// Takes the program's own code out of the page tables. What runs again is mapped again from the page cache, at the cost
/// of a minor fault a page; what only start-up ran (schema, parser, diagnostics) stays out.
fn release_code() {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let here = release_code as fn() as usize;
    let mapped = maps.lines().filter_map(mapping).find(|(start, end)| (*start..*end).contains(&here));
    if let Some((start, end)) = mapped {
        // SAFETY: the range is one whole mapping that is readable and executable, private to us and never written, so
        // that each page can be read again from the file as it was. The kernel refuses ranges that it does not like.
        #[allow(unsafe_code)]
        let released = unsafe {
            rustix::mm::madvise(start as *mut std::ffi::c_void, end - start, rustix::mm::Advice::LinuxDontNeed)
        };
        if let Err(error) = released {
            tracing::debug!("the code of start-up stays mapped: {error}");
        }
    }
}

/// Start and end of a mapping of `/proc/self/maps` that is code of a file: `r-xp`, and never writable.
fn mapping(line: &str) -> Option<(usize, usize)> {
    let (range, rest) = line.split_once(' ')?;
    let file = rest.starts_with("r-xp ") && rest.contains('/');
    let (start, end) = range.split_once('-').filter(|_| file)?;
    Some((usize::from_str_radix(start, 16).ok()?, usize::from_str_radix(end, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_code_of_a_file_is_released() {
        let code = "55d0c0a00000-55d0c1400000 r-xp 00311000 fe:00 131 /usr/bin/bao-kms-provider";
        assert_eq!(mapping(code), Some((0x55d0_c0a0_0000, 0x55d0_c140_0000)));
        for line in
            [&code.replace("r-xp", "r--p"), &code.replace("r-xp", "rw-p"), "7f00-7f01 r-xp 0 00:00 0 [vdso]", ""]
        {
            assert_eq!(mapping(line), None, "{line}");
        }
    }

    const MIB: usize = 1 << 20;

    /// Looks at a process that holds so much, with what a trim leaves; says when it was trimmed, in looks.
    fn looks(trims: &mut Trims, from: Instant, count: u32, held: usize, leaves: usize) -> Vec<u32> {
        let mut at = Vec::new();
        let mut held = held;
        for look in 1..=count {
            let now = from + LOOK * look;
            if trims.due(held, now) {
                held = leaves;
                trims.done(held, now);
                at.push(look);
            }
        }
        at
    }

    #[test]
    fn what_a_burst_holds_at_a_trim_is_given_back_after_it() {
        let start = Instant::now();
        let mut trims = Trims::new(start);
        assert_eq!(looks(&mut trims, start, 5, 6 * MIB, 5 * MIB), [1], "once at the start");
        let burst = start + LOOK * 5;
        // It holds most of what it has taken, whatever is trimmed.
        assert_eq!(looks(&mut trims, burst, 4, 40 * MIB, 23 * MIB), [1, 3]);
        // Its calls are over, and nothing has grown.
        let after = looks(&mut trims, burst + LOOK * 4, 20, 23 * MIB, 5 * MIB);
        assert_eq!(after.len(), 1, "{after:?}");
        assert!(after[0] <= 5, "{after:?}");
    }

    #[test]
    fn a_process_that_holds_more_for_good_is_trimmed_once_a_minute() {
        let start = Instant::now();
        let mut trims = Trims::new(start);
        looks(&mut trims, start, 1, 6 * MIB, 5 * MIB);
        let trimmed = looks(&mut trims, start + LOOK, 400, 40 * MIB, 30 * MIB);
        assert!((20..=28).contains(&trimmed.len()), "in twenty minutes: {trimmed:?}");
    }

    #[test]
    fn the_program_goes_on_after_both() {
        let before = vec![7_u8; 1 << 22];
        release_code();
        trim_heap();
        assert!(before.iter().all(|byte| *byte == 7) && private_bytes() > 1 << 20);
    }
}
