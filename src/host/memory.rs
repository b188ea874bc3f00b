//! Gives memory back that nobody needs: the pages of code that only start-up ran, and what a burst of calls has left with
//! the allocator. A daemon that stands on every control-plane node is measured by what it holds while nothing happens.

use std::time::Duration;

/// How often the heap is looked at.
const LOOK: Duration = Duration::from_secs(3);
/// What the process may have grown by before the heap is worth trimming, in bytes.
const WORTH_TRIMMING: usize = 1 << 20;

/// Runs until it is aborted.
pub(super) async fn keep_small() {
    let mut floor = 0;
    loop {
        tokio::time::sleep(LOOK).await;
        if floor == 0 {
            release_code();
        }
        let held = private_bytes();
        if held < floor {
            floor = held;
        }
        if floor == 0 || held > floor + WORTH_TRIMMING {
            // Takes the allocator's locks for a moment: not on a worker that calls wait for.
            let trimmed = tokio::task::spawn_blocking(|| {
                trim_heap();
                private_bytes()
            });
            floor = trimmed.await.unwrap_or(held).max(1);
        }
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

    #[test]
    fn the_program_goes_on_after_both() {
        let before = vec![7_u8; 1 << 22];
        release_code();
        trim_heap();
        assert!(before.iter().all(|byte| *byte == 7) && private_bytes() > 1 << 20);
    }
}
