//! What systemd is told: READY when sockets accept, STATUS with the reason, STOPPING, and the watchdog, which means that
//! the runtime is alive and nothing else. Without systemd every word goes nowhere.

use std::time::Duration;

use sd_notify::NotifyState;

/// Sends one word; a service manager that does not listen is no trouble of ours.
fn tell(state: NotifyState<'_>) {
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::debug!(%error, "the service manager does not listen");
    }
}

/// Sockets accept, whatever OpenBao does.
pub fn ready() {
    tell(NotifyState::Ready);
}

/// A clean end has begun.
pub fn stopping() {
    tell(NotifyState::Stopping);
}

/// From now on another process is the service.
pub fn main_pid(pid: u32) {
    tell(NotifyState::MainPid(pid));
}

/// One line for `systemctl status`.
pub fn status(line: &str) {
    tell(NotifyState::Status(line));
}

/// Feeds the watchdog for as long as the runtime runs this task; returns at once when there is no watchdog.
pub async fn watchdog() {
    let Some(limit) = sd_notify::watchdog_enabled() else {
        return;
    };
    let mut tick = tokio::time::interval((limit / 3).max(Duration::from_millis(100)));
    loop {
        tick.tick().await;
        tell(NotifyState::Watchdog);
    }
}
