//! What is looked at during the whole story of the two nodes: that both announce the same key, and that each of them
//! reads.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex as Shared, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use bao_kms_provider::front::client::{Client, ClientError, EncryptResponse, StatusResponse};
use tokio::sync::Mutex;
use tokio::task::{JoinHandle, JoinSet};

use crate::support::apiserver::Reader;
use crate::support::repeat::processed;

/// Between two looks at the key_ids.
const LOOK: Duration = Duration::from_millis(50);
/// Between two reads.
const PAUSE: Duration = Duration::from_millis(20);
/// Longer than an election: nothing is lost in one.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a node is read through.
#[derive(Clone)]
pub struct Seen {
    pub name: &'static str,
    pub socket: PathBuf,
    pub reader: Reader,
    /// Held while the API server restarts: nobody asks it then.
    pub turn: Arc<Mutex<()>>,
    /// The same for the program.
    pub ours: Arc<Mutex<()>>,
}

/// The watch, until `end`.
pub struct Watch {
    stop: Arc<AtomicBool>,
    secret: Arc<Shared<String>>,
    pair: JoinHandle<Vec<SystemTime>>,
    readers: JoinSet<(usize, Vec<String>)>,
}

// === impl Watch ===

impl Watch {
    /// Reads this Secret through each node, and opens at each socket what was sealed at the other one.
    pub async fn start(nodes: [Seen; 2], secret: &str) -> Self {
        let (stop, secret) = (Arc::new(AtomicBool::new(false)), Arc::new(Shared::new(secret.to_owned())));
        let mut clients = Vec::new();
        for node in &nodes {
            clients.push(Client::connect(&node.socket).await.expect("a socket").with_timeout(PATIENCE));
        }
        let turns = nodes.each_ref().map(|node| node.ours.clone());
        let pair = tokio::spawn(compare([clients[0].clone(), clients[1].clone()], turns, stop.clone()));
        let mut readers = JoinSet::new();
        for (at, node) in nodes.into_iter().enumerate() {
            let sealed = clients[1 - at].encrypt(vec![7; 32], "watch").await.expect("sealed");
            readers.spawn(read(node, clients[at].clone(), sealed, secret.clone(), stop.clone()));
        }
        Self { stop, secret, pair, readers }
    }

    /// Reads another Secret from now on.
    pub fn turn_to(&self, secret: &str) {
        secret.clone_into(&mut self.secret.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// Ends it: every moment at which the key_ids differed. No read has failed.
    pub async fn end(self) -> Vec<SystemTime> {
        self.stop.store(true, Ordering::Relaxed);
        for (reads, failed) in self.readers.join_all().await {
            assert_eq!(failed, Vec::<String>::new(), "of {reads} reads");
            assert!(reads > 100, "{reads} reads are no watch");
        }
        self.pair.await.expect("it looked all the time")
    }
}

async fn compare(clients: [Client; 2], turns: [Arc<Mutex<()>>; 2], stop: Arc<AtomicBool>) -> Vec<SystemTime> {
    let mut apart = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let turns = tokio::join!(turns[0].lock(), turns[1].lock());
        let (a, b) = tokio::join!(status(&clients[0]), status(&clients[1]));
        drop(turns);
        let (a, b) = (a.expect("Status"), b.expect("Status"));
        assert_eq!((a.healthz.as_str(), b.healthz.as_str()), ("ok", "ok"));
        if a.key_id != b.key_id {
            apart.push(SystemTime::now());
        }
        tokio::time::sleep(LOOK).await;
    }
    apart
}

async fn status(client: &Client) -> Result<StatusResponse, ClientError> {
    let asked = || {
        let client = client.clone();
        async move { client.status().await }
    };
    processed(asked).await
}

/// Reads without pause; how often, and what failed.
async fn read(
    node: Seen,
    client: Client,
    sealed: EncryptResponse,
    secret: Arc<Shared<String>>,
    stop: Arc<AtomicBool>,
) -> (usize, Vec<String>) {
    let (mut reads, mut failed, began) = (0, Vec::new(), Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let name = secret.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let turn = node.turn.lock().await;
        let value = node.reader.value(&name).await;
        drop(turn);
        // The API server keeps seeds that it has opened; another one asks for them.
        let turn = node.ours.lock().await;
        let opened = open(&client, &sealed).await;
        drop(turn);
        reads += 2;
        if value.as_ref() != Ok(&name) {
            failed.push(format!("{} after {:?}: {name}: {value:?}", node.name, began.elapsed()));
        }
        if !matches!(&opened, Ok(seed) if *seed == [7; 32]) {
            failed.push(format!("{} after {:?}: Decrypt: {opened:?}", node.name, began.elapsed()));
        }
        tokio::time::sleep(PAUSE).await;
    }
    (reads, failed)
}

async fn open(client: &Client, sealed: &EncryptResponse) -> Result<Vec<u8>, ClientError> {
    let asked = || {
        let (client, sealed) = (client.clone(), sealed.clone());
        async move { client.decrypt(sealed.ciphertext.to_vec(), "watch", &sealed.key_id, sealed.annotations).await }
    };
    processed(asked).await
}
