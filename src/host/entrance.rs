//! The entrance of one pipeline, from the first try to get its socket to its last call. It is there before OpenBao is asked
//! anything, stays while what stands behind it is replaced, and follows a changed mode or group without closing.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;

use crate::files;
use crate::front::{self, Door, Socket, SocketError, Source};
use crate::telemetry::events;

/// The pause before a refused socket is tried again; doubles up to [`LAST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// The longest pause between two tries to get a socket.
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// The longest that callers wait for mode and group of the socket's file to be as they are wanted. Only a volume that hangs takes
/// longer, and then those that the file has, which were wanted before, are good enough.
const LET_IN: Duration = Duration::from_secs(1);

/// Whether a pipeline has its socket.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SocketState {
    /// Not tried yet.
    Pending,
    /// It accepts connections.
    Ready,
    /// It accepts connections, and its file is not as it is configured; the sentence says why and what to do.
    Unfit(String),
    /// It could not be had; the sentence says why and what to do.
    Refused(String),
}

/// An entrance that is kept.
pub struct Entrance {
    pipeline: Arc<str>,
    state: watch::Receiver<SocketState>,
    wanted: watch::Sender<front::Config>,
    close: watch::Sender<bool>,
    spare: Spare,
    task: JoinHandle<()>,
}

/// The socket under other descriptors while the door is open, for a process that takes our place.
type Spare = Arc<Mutex<Option<Socket>>>;

/// Gives the file of a socket that is ours its mode and group.
type Fit = Arc<dyn Fn(&front::Config) -> Result<(), SocketError> + Send + Sync>;

/// What the task of an entrance holds.
struct Keeping {
    door: Door,
    wanted: watch::Receiver<front::Config>,
    source: Source,
    opening: watch::Receiver<bool>,
    closed: watch::Receiver<bool>,
    state: watch::Sender<SocketState>,
    spare: Spare,
    fit: Fit,
}

// === impl Entrance ===

impl Entrance {
    /// Gets the socket and serves it, once `opening` holds true.
    pub fn open(config: front::Config, source: Source, opening: watch::Receiver<bool>, door: Door) -> Self {
        Self::open_with(config, source, opening, door, Arc::new(front::fit))
    }

    fn open_with(config: front::Config, source: Source, opening: watch::Receiver<bool>, door: Door, fit: Fit) -> Self {
        let pipeline = door.pipeline.clone();
        let (sender, state) = watch::channel(SocketState::Pending);
        let (wanted, config) = watch::channel(config);
        let (close, closed) = watch::channel(false);
        let spare = Spare::default();
        let keeping =
            Keeping { door, wanted: config, source, opening, closed, state: sender, spare: spare.clone(), fit };
        Self { pipeline, state, wanted, close, spare, task: tokio::spawn(keeping.run()) }
    }

    /// Whether the socket is there.
    pub fn state(&self) -> &watch::Receiver<SocketState> {
        &self.state
    }

    /// Another section with the same path.
    pub fn change(&self, config: &front::Config) {
        self.wanted.send_if_modified(|wanted| {
            let differs = wanted != config;
            wanted.clone_from(config);
            differs
        });
    }

    /// The socket, for a process that takes our place; none while there is none.
    ///
    /// # Errors
    /// When the process has no descriptors left.
    pub fn give(&self) -> std::io::Result<Option<Socket>> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.as_ref().map(Socket::duplicate).transpose()
    }

    /// Closes the door at once; ends when its calls have ended, and no later than after `drain`.
    pub async fn close(self, drain: Duration) {
        self.close.send_replace(true);
        let mut task = self.task;
        if tokio::time::timeout(drain, &mut task).await.is_err() {
            tracing::warn!(
                event = events::STOPPING,
                pipeline = &*self.pipeline,
                "calls were still in flight after {} s and are given up",
                drain.as_secs()
            );
            task.abort();
            // It ends with a cancellation, which is what was asked for.
            let _ = task.await;
        }
    }
}

// === impl Keeping ===

impl Keeping {
    /// Gets the socket, however long it takes, and serves it until told to close.
    async fn run(mut self) {
        tokio::select! {
            opened = self.opening.wait_for(|open| *open) => if opened.is_err() { return },
            _ = self.closed.wait_for(|closed| *closed) => return,
        }
        while let Some(socket) = self.acquire().await {
            match self.serve(socket).await {
                Ok(()) => return,
                Err(error) => self.broken(&error).await,
            }
        }
    }

    async fn acquire(&mut self) -> Option<Socket> {
        let mut pause = FIRST_PAUSE;
        loop {
            let config = self.wanted.borrow_and_update().clone();
            let source = std::mem::replace(&mut self.source, Source::Bind);
            let mut closed = self.closed.clone();
            let opened = async {
                match source {
                    Source::Bind => {
                        self.on_volume(&config, SocketState::Refused, |config| front::acquire(config, Source::Bind))
                            .await
                    }
                    // It is there already: no volume is asked.
                    passed_on => front::acquire(&config, passed_on),
                }
            };
            let tried = tokio::select! {
                tried = opened => tried,
                _ = closed.wait_for(|closed| *closed) => return None,
            };
            match tried {
                Ok(socket) => return Some(socket),
                Err(error) => self.refused(&config, &error, SocketState::Refused),
            }
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(LAST_PAUSE),
                // What was wrong may have been the configuration.
                Ok(()) = self.wanted.changed() => pause = FIRST_PAUSE,
                _ = self.closed.wait_for(|closed| *closed) => return None,
            }
        }
    }

    /// Does what may wait for the volume that holds the socket without holding up another pipeline. When that takes long, it
    /// is told, and leads to this state.
    async fn on_volume<T: Send + 'static>(
        &self,
        config: &front::Config,
        state: fn(String) -> SocketState,
        work: impl FnOnce(&front::Config) -> Result<T, SocketError> + Send + 'static,
    ) -> Result<T, SocketError> {
        let section = config.clone();
        let hangs = || self.refused(config, &SocketError::Hangs { path: config.path.clone() }, state);
        files::beside(move || work(&section), hangs).await.unwrap_or_else(|error| {
            let source = std::io::Error::other(error);
            Err(SocketError::Io { path: config.path.clone(), step: "cannot be worked on", source })
        })
    }

    async fn serve(&self, socket: Socket) -> std::io::Result<()> {
        tracing::info!(
            event = events::SOCKET_READY,
            pipeline = &*self.door.pipeline,
            path = %self.wanted.borrow().path.display(),
            "the socket accepts connections"
        );
        let keep = |socket: Option<Socket>| *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = socket;
        // Without descriptors left it is served all the same, and cannot be handed over.
        keep(socket.duplicate().ok());
        let ours = socket.is_ours();
        let mut closed = self.closed.clone();
        let shutdown = async {
            // A dropped sender means that the pipeline is gone: the same as being told to close.
            let _ = closed.wait_for(|closed| *closed).await;
            // A listener that is kept would let callers wait at a closed door.
            keep(None);
        };
        let (looked, fits) = oneshot::channel();
        let mut leaving = self.closed.clone();
        let serving = async {
            // Mode and group are right before the first caller is let in.
            tokio::select! {
                _ = tokio::time::timeout(LET_IN, fits) => {}
                _ = leaving.wait_for(|closed| *closed) => {}
            }
            front::serve(socket, self.door.clone(), shutdown).await
        };
        tokio::select! {
            never = self.keep_fit(ours, looked) => match never {},
            served = serving => served,
        }
    }

    /// Keeps mode and group of the socket's file as they are wanted. Calls are served once it has `looked`, whatever becomes
    /// of it.
    async fn keep_fit(&self, ours: bool, looked: oneshot::Sender<()>) -> Infallible {
        let mut wanted = self.wanted.clone();
        let mut looked = Some(looked);
        let mut before = None;
        loop {
            let config = wanted.borrow_and_update().clone();
            if *self.closed.borrow() {
                // The file is the next one's.
                std::future::pending::<()>().await;
            }
            let fitted = if ours {
                // No other entrance gets the file while a volume that hangs may yet change it; whom we hand it to may.
                let lock = self.spare.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Socket::lock);
                let fit = self.fit.clone();
                let work = move |config: &front::Config| {
                    let fitted = fit(config);
                    drop(lock);
                    fitted
                };
                self.on_volume(&config, SocketState::Unfit, work).await
            } else {
                Ok(())
            };
            let pause = match fitted {
                Ok(()) => {
                    self.state.send_replace(SocketState::Ready);
                    None
                }
                Err(error) => {
                    self.refused(&config, &error, SocketState::Unfit);
                    Some(LAST_PAUSE)
                }
            };
            // Nobody waits for it when callers have been let in already.
            let _ = looked.take().map(|looked| looked.send(()));
            let now = (config.mode, config.group.clone());
            if !ours && before.replace(now.clone()).is_some_and(|before| before != now) {
                let help = "set SocketMode= and SocketGroup= of the socket unit, which made the file";
                tracing::warn!(
                    event = events::SOCKET_REFUSED,
                    pipeline = &*self.door.pipeline,
                    help,
                    "the service manager's socket keeps its mode and group, whatever socket.mode and socket.group say"
                );
            }
            let again = async {
                match pause {
                    Some(pause) => tokio::time::sleep(pause).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                changed = wanted.changed() => if changed.is_err() { std::future::pending::<()>().await },
                () = again => {}
            }
        }
    }

    /// The socket is no longer served although nobody asked for it: the same one is tried again.
    async fn broken(&mut self, error: &std::io::Error) {
        tracing::error!(
            event = events::SOCKET_REFUSED,
            pipeline = &*self.door.pipeline,
            "the socket is served no longer, it is tried again: {error}"
        );
        self.state.send_replace(SocketState::Refused(format!("it is served no longer: {error}; it is tried again")));
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        self.source = spare.map_or(Source::Bind, Socket::into_source);
        tokio::time::sleep(FIRST_PAUSE).await;
    }

    fn refused(&self, config: &front::Config, error: &SocketError, state: fn(String) -> SocketState) {
        let state = state(format!("{error}; {}", error.help()));
        if *self.state.borrow() != state {
            tracing::error!(
                event = events::SOCKET_REFUSED,
                pipeline = &*self.door.pipeline,
                path = %config.path.display(),
                help = error.help(),
                "{error}"
            );
        }
        self.state.send_replace(state);
    }
}

#[cfg(test)]
#[path = "entrance_tests.rs"]
mod tests;
