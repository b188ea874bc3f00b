//! `serve`: runs the host until a signal ends it. SIGTERM and SIGINT drain; SIGUSR2 hands the sockets to a new process;
//! SIGHUP and files that change reload; a bad file keeps what runs, and is shown until it is good or back at what it was.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::handover::{HandOverError, Predecessor, Successor, program};
use super::reload::{Once, Reading, reload};
use super::watch::Watch;
use super::{PluginHost, SocketState, lock, memory, systemd};
use crate::config::Config;
use crate::front::Inherited;
use crate::telemetry::{self, events};

/// How long the program tries to get at least one socket before it ends with [`Ending::NoSocket`].
const SOCKET_PATIENCE: Duration = Duration::from_secs(60);
/// How long a hand-over waits for sockets that are being opened. One on a volume that hangs does not hold up the others.
const OPENING_PATIENCE: Duration = Duration::from_secs(5);
/// How often sockets and reasons are looked at for systemd.
const LOOK: Duration = Duration::from_millis(250);

/// How `serve` ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ending {
    /// A signal asked for it.
    Signal,
    /// Another process serves the sockets.
    HandedOver,
    /// The process that was to take the sockets over could not serve what the one before serves.
    NotReady,
    /// No pipeline could get its socket for a minute.
    NoSocket,
    /// The runtime could not listen for signals.
    NoSignals,
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
    successor: Signal,
}

/// Runs the host. The files of `watch` are read again at each SIGHUP and when they change.
pub async fn serve(watch: Arc<Watch>, config: Config, telemetry: telemetry::Guard) -> Ending {
    let Ok(mut signals) = Signals::listen() else {
        return Ending::NoSignals;
    };
    tracing::info!(
        event = events::STARTED,
        version = env!("CARGO_PKG_VERSION"),
        pipelines = config.pipelines.len(),
        "started"
    );
    lock::apply(&config.memory);
    // Asked before anybody could replace the file: its path is what the next process runs.
    let program = program();
    let once = Once::of(&config);
    let (before, inherited) = match Predecessor::find() {
        Ok(Some((before, inherited))) => (Some(before), inherited),
        Ok(None) => (None, Inherited::from_environment()),
        Err(error) => {
            tracing::error!(event = events::HAND_OVER_REFUSED, "the sockets cannot be taken over: {error}");
            return Ending::NotReady;
        }
    };
    let mut host = PluginHost::start(config, inherited);
    let mut arrival = before.map(|before| {
        host.forget_unclaimed();
        tokio::spawn(before.take_over(host.outlook().clone()))
    });
    // Until when a hand-over that was asked for waits for sockets.
    let mut asked: Option<Instant> = None;
    let mut successor: Option<Successor> = None;
    let (told, mut changed) = mpsc::channel(1);
    let watcher = tokio::spawn(watch.clone().run(told));
    let mut reading = Reading::of(watch);
    let watchdog = tokio::spawn(systemd::watchdog());
    let tally = tokio::spawn(telemetry::tally::run(host.outlook().clone()));
    let memory = tokio::spawn(memory::keep_small());
    let mut announcer = Announcer::default();
    let mut look = tokio::time::interval(LOOK);
    let ending = loop {
        tokio::select! {
            _ = look.tick() => if announcer.look(&host) == Verdict::GiveUp { break Ending::NoSocket },
            _ = signals.terminate.recv() => break Ending::Signal,
            _ = signals.interrupt.recv() => break Ending::Signal,
            _ = signals.hangup.recv() => reading.begin(),
            Some(()) = changed.recv() => reading.begin(),
            read = reading.over() => reload(read, &once, &mut host, &telemetry).await,
            arrived = settled(&mut arrival) => {
                arrival = None;
                if !arrived { break Ending::NotReady }
            }
            _ = signals.successor.recv(), if asked.is_none() && successor.is_none() && arrival.is_none() => {
                asked = Some(Instant::now() + OPENING_PATIENCE);
            }
            () = opened(asked, &host) => {
                asked = None;
                successor = begin_hand_over(&program, &host);
            }
            outcome = decided(successor.as_ref()) => match (outcome, successor.take()) {
                (Ok(()), Some(ready)) => {
                    ready.go();
                    break Ending::HandedOver;
                }
                (outcome, failed) => refuse_hand_over(outcome.err(), failed),
            },
        }
    };
    if let Some(arrival) = arrival {
        // The process before must not leave its place to one that ends.
        arrival.abort();
        let _ = arrival.await;
    }
    if let Some(unfinished) = successor {
        unfinished.give_up();
    }
    if ending == Ending::NotReady {
        let help = "look for the reason above; the process before goes on serving";
        tracing::error!(
            event = events::HAND_OVER_REFUSED,
            help,
            "not every pipeline became healthy that was so before"
        );
    }
    if ending != Ending::HandedOver {
        systemd::stopping();
    }
    tracing::info!(event = events::STOPPING, "closing the doors; calls in flight are finished");
    host.stop().await;
    for beside in [watchdog, tally, memory, watcher] {
        beside.abort();
    }
    telemetry.shutdown().await;
    ending
}

fn begin_hand_over(program: &std::io::Result<PathBuf>, host: &PluginHost) -> Option<Successor> {
    let program = program.as_ref().map_err(|error| HandOverError::Start(std::io::Error::from(error.kind())));
    match program.and_then(|program| Successor::start(program, host)) {
        Ok(successor) => Some(successor),
        Err(error) => {
            refuse_hand_over(Some(error), None);
            None
        }
    }
}

fn refuse_hand_over(error: Option<HandOverError>, failed: Option<Successor>) {
    if let Some(failed) = failed {
        failed.give_up();
    }
    if let Some(error) = error {
        tracing::error!(event = events::HAND_OVER_REFUSED, "{error}; this process goes on serving");
    }
}

/// Resolves when a hand-over may begin that was asked for: a socket on its way to its door could not be given, and would be
/// closed in the face of its callers.
async fn opened(by: Option<Instant>, host: &PluginHost) {
    match by {
        // What is not open by then is left to the next process to open.
        Some(by) => drop(tokio::time::timeout_at(by, host.sockets_tried()).await),
        None => std::future::pending().await,
    }
}

/// What has become of the new process; never, while there is none.
async fn decided(successor: Option<&Successor>) -> Result<(), HandOverError> {
    match successor {
        Some(successor) => successor.outcome().await,
        None => std::future::pending().await,
    }
}

/// Whether we took the place of the process before; never, when there is none.
async fn settled(arrival: &mut Option<JoinHandle<bool>>) -> bool {
    match arrival {
        Some(arrival) => arrival.await.unwrap_or(false),
        None => std::future::pending().await,
    }
}

// === impl Signals ===

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
            successor: signal(SignalKind::user_defined2())?,
        })
    }
}

/// Watches the pipelines for systemd: READY once, STATUS when it changes.
struct Announcer {
    since: Instant,
    ready: bool,
    status: String,
}

#[derive(PartialEq, Eq)]
enum Verdict {
    GoOn,
    GiveUp,
}

// === impl Announcer ===

impl Default for Announcer {
    fn default() -> Self {
        Self { since: Instant::now(), ready: false, status: String::new() }
    }
}

impl Announcer {
    fn look(&mut self, host: &PluginHost) -> Verdict {
        let sockets: Vec<SocketState> = host.pipelines().iter().map(|one| one.socket().borrow().clone()).collect();
        let any = sockets.iter().any(|socket| matches!(socket, SocketState::Ready | SocketState::Unfit(_)));
        let tried = !sockets.contains(&SocketState::Pending);
        if any && tried && !self.ready {
            self.ready = true;
            systemd::ready();
        }
        let status = host
            .pipelines()
            .iter()
            .zip(&sockets)
            .map(|(pipeline, socket)| {
                let reason = match socket {
                    SocketState::Ready | SocketState::Unfit(_) => match pipeline.key().shown_trouble(Instant::now()) {
                        Some(class) => class.name(),
                        None if pipeline.key().peek().is_none() => "starting",
                        None => "ok",
                    },
                    SocketState::Pending => "opening the socket",
                    SocketState::Refused(_) => "no socket",
                };
                format!("{}: {reason}", pipeline.config().name)
            })
            .collect::<Vec<_>>()
            .join(", ");
        if status != self.status {
            systemd::status(&status);
            self.status = status;
        }
        if !self.ready && !any && self.since.elapsed() >= SOCKET_PATIENCE { Verdict::GiveUp } else { Verdict::GoOn }
    }
}
