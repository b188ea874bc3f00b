//! Waiting for something to become true, with a bound that only a defect reaches and the last obstacle in the message.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// Far above what anything here takes on a slow machine.
pub const LONG: Duration = Duration::from_secs(120);
/// How soon Status is healthy after OpenBao's return or a repair: two seconds are promised, twice that is asserted, because
/// the machine is busy with other tests.
pub const SOON: Duration = Duration::from_secs(4);

/// Tries until it works; panics with the last obstacle after `limit`.
pub async fn until<T>(what: &str, limit: Duration, mut attempt: impl AsyncFnMut() -> Result<T, String>) -> T {
    let end = Instant::now() + limit;
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(obstacle) => assert!(Instant::now() < end, "waited {limit:?} for {what}: {obstacle}"),
        }
        sleep(Duration::from_millis(100)).await;
    }
}
