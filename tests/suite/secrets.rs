//! Seeds, tokens and credentials stand in the program's memory and nowhere else; and the process keeps others out of it.

use std::os::unix::fs::{MetadataExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use bao_kms_provider::dev::certificate::ClientAuthority;
use bao_kms_provider::dev::client::Endpoint;
use bao_kms_provider::dev::provision::{CertLogin, Setup, provision};
use bao_kms_provider::dev::server::Fault;
use bao_kms_provider::error::{Class, Error};
use bao_kms_provider::front::client::{Client, EncryptResponse};
use bao_kms_provider::request::{Operation, Request};
use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use secrecy::ExposeSecret;

use super::puppet::{House, healthy, reverse};
use super::support::{PATIENCE, Program, Stage, connect, status_until, until};
use super::traces::{Collector, config as traced};
use super::user::{SERVICE, as_user, given_to_all};

/// Something that must not be seen, in the spellings in which a careless line would show it.
struct Secret {
    what: &'static str,
    spellings: Vec<String>,
}

impl Secret {
    /// By its first bytes, as many as base64 spells without regard for what follows: a part is a leak as well.
    fn new(what: &'static str, secret: &[u8]) -> Self {
        let start = &secret[..15.min(secret.len() / 3 * 3)];
        assert!(start.len() >= 12, "{what} is too short to be looked for");
        let numbers = |spell: fn(&u8) -> String| start.iter().map(spell).collect::<Vec<_>>();
        let spellings = vec![
            String::from_utf8_lossy(start).into_owned(),
            numbers(u8::to_string).join(","),
            numbers(|byte| format!("{byte:02x}")).concat(),
            numbers(|byte| format!("{byte:02X}")).concat(),
            numbers(|byte| format!("{byte:x}")).join(","),
            numbers(|byte| format!("0x{byte:02x}")).join(","),
            STANDARD.encode(start),
            URL_SAFE_NO_PAD.encode(start),
        ];
        Self { what, spellings }
    }
}

/// Every secret that stands in a text, however it is spaced and broken into lines.
fn leaks(text: &[u8], secrets: &[Secret]) -> Vec<String> {
    let text = String::from_utf8_lossy(text);
    let close: String = text.replace("\\n", "").chars().filter(|c| !c.is_whitespace()).collect();
    let shows = |spelling: &&String| text.contains(spelling.as_str()) || close.contains(spelling.as_str());
    let found = secrets.iter().flat_map(|secret| {
        let spelling = secret.spellings.iter().find(shows)?;
        Some(format!("{} as {spelling}", secret.what))
    });
    found.collect()
}

#[test]
fn the_search_finds_a_secret_however_it_is_written() {
    let seed = *b"a-seed-that-must-not-be-seen-32b";
    let secrets = [Secret::new("the seed", &seed)];
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let shown = [
        format!("plaintext={}", String::from_utf8_lossy(&seed)),
        format!("{:?}", seed.to_vec()),
        format!("{:#?}", seed.to_vec()),
        serde_json::json!({ "message": format!("{:#?}", seed) }).to_string(),
        serde_json::json!({ "bytes": seed }).to_string(),
        format!("{:x?}", seed),
        format!("{:#04x?}", seed),
        hex(&seed),
        hex(&seed).to_uppercase(),
        STANDARD.encode(seed),
        URL_SAFE_NO_PAD.encode(seed),
        format!("the first half: {}", STANDARD.encode(&seed[..16])),
    ];
    for text in shown {
        assert_eq!(leaks(text.as_bytes(), &secrets).len(), 1, "{text}");
    }
    assert_eq!(leaks(b"a-seed-that is something else, 97, 45, 115", &secrets), Vec::<String>::new());
}

/// Every regular file below a folder, but for those that were given.
fn files(folder: &Path, given: &[&str], out: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder").flatten() {
        let (path, kind) = (entry.path(), entry.file_type().expect("a kind"));
        if kind.is_dir() {
            files(&path, given, out);
        } else if kind.is_file() && !given.iter().any(|name| path.ends_with(name)) {
            out.push(path);
        }
    }
}

/// Encrypt, repeated until logins that were refused have healed.
async fn encrypt_at_last(client: &Client, seed: &[u8]) -> EncryptResponse {
    let began = Instant::now();
    loop {
        match client.encrypt(seed, "u").await {
            Ok(sealed) => return sealed,
            Err(error) => assert!(began.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Both logins, renewals, faults that put secrets into OpenBao's answers, a revocation, a tampered object and traces, all
/// at trace level; then everything that anybody could read is searched.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_secret_is_written_anywhere() {
    let (stage, collector, authority) = (Stage::set().await, Collector::default(), ClientAuthority::generate());
    let authority = authority.expect("an authority");
    let client = authority.issue("bao-kms-provider").expect("a certificate");
    stage.write("client.pem", &client.cert_pem);
    stage.write("client.key", &client.key_pem);
    let endpoint = Endpoint { url: stage.server.url(), ca_pem: stage.server.ca_pem() };
    let cert = Some(CertLogin::of(&authority.pem()));
    let setup = Setup { token_ttl: "4s".into(), cert, ..stage.setup.clone() };
    provision(&endpoint, &stage.server.root_token(), &setup).await.expect("set up");
    let by_jwt = format!("jwt: {{ role: kms, file: {} }}", stage.path("identity.jwt").display());
    let by_cert = format!(
        "cert: {{ role: kms, certFile: {}, keyFile: {} }}",
        stage.path("client.pem").display(),
        stage.path("client.key").display()
    );
    let config = Stage::with_second(&traced(&stage, &collector.listen().await), |second| {
        assert!(second.contains(&by_jwt), "{second}");
        second.replace(&by_jwt, &by_cert)
    });
    let stdout = std::fs::File::create(stage.path("stdout")).expect("a file");
    let program = stage.serve_with(&config, |command| {
        command.stdout(Stdio::from(stdout));
    });

    let state = stage.server.state().clone();
    let mut secrets = vec![Secret::new("the client's key", client.key_pem.lines().nth(1).expect("a line").as_bytes())];
    for jwt in &*stage.secrets.lock().expect("lock") {
        secrets.extend(jwt.split('.').skip(1).map(|part| Secret::new("the JWT", part.as_bytes())));
    }
    let tokens = |secrets: &mut Vec<Secret>| {
        for token in state.tokens() {
            secrets.push(Secret::new("a token", token.as_bytes()));
            secrets.push(Secret::new("a token", token.trim_start_matches("s.").as_bytes()));
        }
    };
    let (faults, jwt) = (stage.server.faults(), std::fs::read_to_string(stage.path("identity.jwt")).expect("a JWT"));
    for (at, name) in ["kms.sock", "second.sock"].into_iter().enumerate() {
        let client = connect(&stage.path(name)).await.with_timeout(Duration::from_secs(10));
        status_until(&client, "ok", |status| status.healthz == "ok").await;
        let seed = format!("{at}-seed-that-must-not-be-seen-32").into_bytes();
        let sealed = encrypt_at_last(&client, &seed).await;
        let open = || client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, sealed.annotations.clone());
        open().await.expect("Decrypt");
        secrets.push(Secret::new("a seed", &seed));
        secrets.push(Secret::new("a ciphertext", &sealed.ciphertext[b"vault:v1:".len()..]));
        tokens(&mut secrets);

        // OpenBao's words, or what stands in front of it, may hold anything.
        let (said, token) = (STANDARD.encode(&seed), state.tokens().pop().expect("a token"));
        let words = |status, body: String| Fault::Reply { status, body };
        let errors = |text: &str| serde_json::json!({ "errors": [text] }).to_string();
        let ciphertext = String::from_utf8_lossy(&sealed.ciphertext).into_owned();
        for (part, fault) in [
            ("transit/encrypt", words(400, errors(&format!("cannot seal {said}")))),
            ("transit/encrypt", words(200, format!("{{\"data\":{{\"ciphertext\":{{\"{said}\":\"{ciphertext}\""))),
            ("transit/decrypt", words(200, format!("{{\"data\":{{\"plaintext\":[\"{said}\"]}}}}"))),
            ("transit/decrypt", words(500, errors(&format!("cannot open {ciphertext}")))),
            ("transit/decrypt", Fault::Malformed),
            ("transit/keys", words(403, errors(&format!("{token} may not")))),
            ("auth/", words(400, errors(&format!("no role for {jwt}")))),
            ("auth/", words(200, format!("{{\"auth\":{{\"client_token\":[\"{token}\"]}}}}"))),
        ] {
            faults.add_times(part, fault, 1);
        }
        state.revoke_all_tokens();
        for _ in 0..4 {
            // Some of them fail, which is what they are for.
            let _ = (client.encrypt(seed.clone(), "u").await, open().await);
        }
        let mut changed = sealed.annotations.clone();
        changed.values_mut().next().expect("one")[0] ^= 1;
        client.decrypt(sealed.ciphertext.to_vec(), "u", &sealed.key_id, changed).await.expect_err("tampered");
        faults.clear();
        encrypt_at_last(&client, &seed).await;
        tokens(&mut secrets);
    }
    let renewed = |pipeline: &str| {
        let log = program.output();
        log.lines().any(|line| line.contains("token_renewed") && line.contains(&format!("\"pipeline\":\"{pipeline}\"")))
    };
    until("renewals of both", || renewed("a") && renewed("b")).await;
    let mut pages = String::new();
    for page in ["/metrics", "/readyz", "/livez"] {
        pages += &stage.admin(page).await.1;
    }
    tokens(&mut secrets);

    let mut places = vec![("metrics and readiness".to_owned(), pages.into_bytes())];
    let proc = PathBuf::from(format!("/proc/{}", program.child.id()));
    places.push(("cmdline".into(), std::fs::read(proc.join("cmdline")).expect("readable by all")));
    if rustix::process::geteuid().is_root() {
        places.push(("environ".into(), std::fs::read(proc.join("environ")).expect("root may")));
    }
    let (exit, log) = program.stop();
    assert_eq!(exit, Some(0));
    for event in ["login_succeeded", "login_failed", "status_changed", "token_renewed", "token_revoked"] {
        assert!(log.contains(event), "the story has no {event}:\n{log}");
    }
    let spans = collector.spans();
    for name in ["kms.encrypt", "kms.decrypt", "openbao.attempt"] {
        assert!(spans.iter().any(|span| span.name == name), "no span {name}");
    }
    places.push(("the spans".into(), format!("{spans:?}").into_bytes()));
    places.push(("the log".into(), log.into_bytes()));
    let mut left = Vec::new();
    files(stage.dir.path(), &["identity.jwt", "client.key"], &mut left);
    assert!(left.iter().any(|path| path.ends_with("stdout")), "{left:?}");
    places.extend(left.iter().map(|path| (path.display().to_string(), std::fs::read(path).expect("a file"))));
    for (place, text) in places {
        assert_eq!(leaks(&text, &secrets), Vec::<String>::new(), "in {place}:\n{}", String::from_utf8_lossy(&text));
    }
}

/// `probe` makes its own seeds; a puppet behind the door sees them.
#[tokio::test(flavor = "multi_thread")]
async fn probe_prints_no_seed_and_no_ciphertext() {
    let key = healthy();
    for trouble in ["", "encrypt", "decrypt"] {
        let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (kept, mirrored) = (seen.clone(), key.clone());
        let house = House::open(key.clone(), move |request: Request| {
            let (call, bytes) = match &request.operation {
                Operation::Encrypt { plaintext } => ("encrypt", plaintext.expose_secret().to_vec()),
                Operation::Decrypt { ciphertext, .. } => ("decrypt", ciphertext.to_vec()),
            };
            kept.lock().expect("lock").push(bytes.clone());
            let answer = match call == trouble {
                true => Err(Error::new(Class::ServerError, format!("{bytes:?} {}", STANDARD.encode(&bytes)))),
                false => reverse(&mirrored, request),
            };
            async move { answer }
        });
        for json in [false, true] {
            let mut command = Command::new(env!("CARGO_BIN_EXE_bao-kms-provider"));
            command.args(["probe", "--timeout", "30s", "--socket"]).arg(house.path());
            command.args(json.then_some("--json"));
            let output = tokio::task::spawn_blocking(move || command.output()).await.expect("task").expect("it runs");
            assert_eq!(output.status.code(), Some(if trouble.is_empty() { 0 } else { 4 }));
            let secrets: Vec<_> =
                seen.lock().expect("lock").iter().map(|bytes| Secret::new("what probe sealed", bytes)).collect();
            assert!(!secrets.is_empty());
            let text = [output.stdout, output.stderr].concat();
            assert_eq!(leaks(&text, &secrets), Vec::<String>::new(), "{}", String::from_utf8_lossy(&text));
        }
    }
}

/// Whose files a process has below /proc: those of its user, or root's when it cannot be dumped (proc(5)).
fn owners(pid: u32) -> Vec<u32> {
    let owner = |name: &str| std::fs::metadata(format!("/proc/{pid}/{name}")).expect("there").uid();
    ["environ", "fd", "maps", "mem", "auxv"].map(owner).to_vec()
}

/// proc(5): the limit on core files, `NoNewPrivs`, and the owner of its files, which tells something of a user that is not root.
#[tokio::test(flavor = "multi_thread")]
async fn the_process_denies_itself_core_dumps_and_privileges() {
    let stage = Stage::set().await;
    let root = rustix::process::geteuid().is_root();
    stage.write("config.yaml", &stage.config(""));
    let (mut binary, mut user) =
        (PathBuf::from(env!("CARGO_BIN_EXE_bao-kms-provider")), rustix::process::geteuid().as_raw());
    if root {
        (binary, user) = (given_to_all(&stage), SERVICE);
        for name in ["", "config.yaml", "identity.jwt", "ca.pem"] {
            chown(stage.path(name), Some(SERVICE), Some(SERVICE)).expect("given away");
        }
    }
    let start = |command: Command| {
        let start = move || Program::spawn(command);
        if root { as_user(SERVICE, &[], start) } else { start() }
    };
    let mut command = Command::new(&binary);
    command.args(["serve", "--config"]).arg(stage.path("config.yaml"));
    let program = start(command);
    let client = stage.client().await;
    status_until(&client, "ok", |status| status.healthz == "ok").await;
    let proc = PathBuf::from(format!("/proc/{}", program.child.id()));
    let read = |name: &str| std::fs::read_to_string(proc.join(name));
    match read("limits") {
        Ok(limits) => {
            let core = limits.lines().find(|line| line.starts_with("Max core file size")).expect("a limit");
            assert!(core.split_whitespace().nth(4) == Some("0"), "{core}");
        }
        Err(error) => assert!(!root, "{error}"),
    }
    assert!(read("status").expect("status").contains("NoNewPrivs:\t1"));
    assert_eq!(owners(program.child.id()), [0; 5], "not dumpable");
    // What denies itself nothing shows that the system tells one from the other.
    let mut command = Command::new("sleep");
    command.arg("60");
    // A process becomes dumpable a moment after its program has begun.
    let plain = start(command);
    until("dumpable", || owners(plain.child.id()) == [user; 5]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn memory_is_locked_when_asked_for_or_the_log_says_why_not() {
    let stage = Stage::set().await;
    let program = stage.serve(&format!("{}memory: {{ lock: true }}\n", stage.config("")));
    status_until(&stage.client().await, "ok", |status| status.healthz == "ok").await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", program.child.id())).expect("status");
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:")).expect("a line").trim() != "0 kB";
    assert!(locked != program.output().contains("memory is not locked"), "{status}\n{}", program.output());
}
