//! Three OpenBao nodes on one raft, whose leaders die under load.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::openbao::{OpenBao, leader};
use crate::support::provider::{Login, Setup};
use crate::support::wait::{LONG, until};

const CALLERS: usize = 16;
const KILLS: usize = 5;

/// An election takes a few seconds, in which no node serves; a caller that waits for five loses nothing.
#[tokio::test(flavor = "multi_thread")]
async fn leaders_die_under_load_and_no_call_is_lost() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut nodes = OpenBao::cluster(folder.path()).await;
    nodes[0].provision().await;
    let mut setup = Setup::new(folder.path(), &nodes[0], Login::Jwt);
    let urls: Vec<_> = nodes.iter().map(|node| node.url.clone()).collect();
    setup.pipeline()["backend"]["transit"]["endpoints"] = json!(urls);
    setup.pipeline()["health"]["tolerance"] = json!("3m");
    let provider = setup.start();
    let key_id = provider.status("ok").await;
    let client = provider.connect().await.with_timeout(Duration::from_secs(5));

    let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut callers = tokio::task::JoinSet::new();
    for at in 0..CALLERS {
        let (client, stop, done) = (client.clone(), stop.clone(), done.clone());
        callers.spawn(async move {
            let mut lost = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                let sealed = match client.encrypt(vec![at as u8; 32], "u").await {
                    Ok(sealed) => sealed,
                    Err(error) => {
                        lost.push(format!("Encrypt after {:?}: {error}", began.elapsed()));
                        continue;
                    }
                };
                let began = Instant::now();
                match client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations).await {
                    Ok(opened) => assert_eq!(opened, vec![at as u8; 32]),
                    Err(error) => lost.push(format!("Decrypt after {:?}: {error}", began.elapsed())),
                }
                done.fetch_add(2, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            lost
        });
    }

    let mut gaps = Vec::new();
    for _ in 0..KILLS {
        let at = leader(&nodes).await;
        nodes[at].kill();
        let killed = Instant::now();
        leader(&nodes).await;
        gaps.push(killed.elapsed());
        nodes[at].start().await;
        let before = done.load(Ordering::Relaxed);
        until("calls to go on", LONG, async || match done.load(Ordering::Relaxed) {
            count if count > before + 10 * CALLERS => Ok(()),
            count => Err(format!("{count} calls")),
        })
        .await;
        // The one that was killed must know all of the log before it may lead again.
        tokio::time::sleep(Duration::from_secs(3)).await;
        assert_eq!(provider.status("ok").await, key_id);
    }
    stop.store(true, Ordering::Relaxed);
    let lost: Vec<_> = callers.join_all().await.into_iter().flatten().collect();
    eprintln!("{} calls over {KILLS} elections of {gaps:?}, {} lost", done.load(Ordering::Relaxed), lost.len());
    assert_eq!(lost, Vec::<String>::new(), "elections took {gaps:?}");
}
