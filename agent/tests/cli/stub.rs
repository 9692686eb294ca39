//! A stand-in for the loop: it keeps a record, takes commands, goes through the states of an update without touching
//! anything, and lists what it was asked.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bascule_agent::api::{self, Api};
use bascule_agent::config::Config;
use bascule_agent::paths::Paths;
use bascule_agent::shared::{
    Answer, Command, Handle, Plan, Progress, Refused, Release, SlotView, Snapshot, Source, Submission,
};
use bascule_agent::story::Stories;
use bascule_core::{
    Baseline, Blocker, BootId, BootStatus, BootView, Deployment, DeploymentId, Digest, Ending, ErrorReport, Group,
    Offer, Phase, Record, Requires, Settings, Stamp, Step, Then, Transfer, Warning,
};
use sha2::Digest as _;
use tempfile::TempDir;
use tokio::sync::{mpsc, oneshot, watch};

/// What the stand-in does with the next command, and what it was asked so far.
#[derive(Default)]
struct Script {
    events: Vec<String>,
    refuse: Option<Refused>,
    end: Option<Ending>,
    hold_reboot: bool,
    blockers: Vec<Blocker>,
}

/// A device with a daemon on it, as long as it lives.
pub(crate) struct Device {
    root: TempDir,
    script: Arc<Mutex<Script>>,
    snapshot: watch::Sender<Snapshot>,
    stop: mpsc::Sender<()>,
    daemon: Mutex<Option<JoinHandle<()>>>,
}

impl Device {
    pub(crate) fn start() -> Device {
        let root = TempDir::new().unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let (snapshot, receiver) = watch::channel(factory());
        let (commands, queue) = mpsc::channel(4);
        let (stop, stopped) = mpsc::channel(1);
        let (ready, is_ready) = std::sync::mpsc::channel();
        let paths = Paths::under(root.path());
        let stand_in = Loop { script: Arc::clone(&script), snapshot: snapshot.clone(), stop: stop.clone() };
        let daemon = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = api::bind(&paths, "nobody-has-this").unwrap();
                tokio::spawn(stand_in.run(queue));
                ready.send(()).unwrap();
                let handle = Handle { commands, snapshot: receiver };
                let stories = Stories::new(paths.root());
                let mut stopped = stopped;
                api::serve(listener, Api::new(handle, Arc::new(config()), stories), async move {
                    stopped.recv().await;
                })
                .await;
            });
            runtime.shutdown_background();
        });
        is_ready.recv().unwrap();
        Device { root, script, snapshot, stop, daemon: Mutex::new(Some(daemon)) }
    }

    pub(crate) fn root(&self) -> &Path {
        self.root.path()
    }

    pub(crate) fn socket(&self) -> PathBuf {
        Paths::under(self.root()).socket()
    }

    /// What the loop was asked, in order.
    pub(crate) fn events(&self) -> Vec<String> {
        self.script().events.clone()
    }

    /// Waits until an event begins with `word`.
    pub(crate) fn wait_for(&self, word: &str) {
        let begun = Instant::now();
        while !self.events().iter().any(|event| event.starts_with(word)) {
            assert!(begun.elapsed() < Duration::from_secs(20), "no {word} among {:?}", self.events());
            std::thread::yield_now();
        }
    }

    pub(crate) fn refuse_next(&self, refused: Refused) {
        self.script().refuse = Some(refused);
    }

    pub(crate) fn fail_next(&self, error: ErrorReport) {
        self.end_next(Ending::Failed { error });
    }

    pub(crate) fn end_next(&self, ending: Ending) {
        self.script().end = Some(ending);
    }

    pub(crate) fn block(&self, blocker: Blocker) {
        self.script().blockers.push(blocker);
    }

    pub(crate) fn warn(&self, warning: Warning) {
        self.snapshot.send_modify(|snapshot| snapshot.warnings = vec![warning]);
    }

    pub(crate) fn stories(&self) -> Stories {
        Stories::new(self.root())
    }

    pub(crate) fn hold_reboot(&self) {
        self.script().hold_reboot = true;
    }

    pub(crate) fn steps(&self, steps: &[Step]) {
        steps.iter().for_each(|step| advance(&self.snapshot, step));
    }

    pub(crate) fn set_view(&self, a: BootStatus, b: BootStatus) {
        let view = BootView { settings: Settings::Intact, primary: Group::A, a, b };
        self.snapshot.send_modify(|snapshot| snapshot.view = Ok(view));
    }

    pub(crate) fn on_trial(&self) {
        self.set_view(BootStatus::Trial { tries_left: 2 }, BootStatus::Good);
    }

    pub(crate) fn configure(&self) {
        let file = Paths::under(self.root()).config();
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, CONFIG).unwrap();
    }

    /// Ends the daemon and waits for its end.
    pub(crate) fn stop(&self) {
        let _ = self.stop.try_send(());
        if let Some(daemon) = self.daemon.lock().unwrap_or_else(PoisonError::into_inner).take() {
            daemon.join().unwrap();
        }
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        let _ = self.stop.try_send(());
    }
}

const CONFIG: &str = "[slots.root]\na = \"partlabel:root-a\"\nb = \"partlabel:root-b\"\n";

fn config() -> Config {
    let root = TempDir::new().unwrap();
    let paths = Paths::under(root.path());
    std::fs::create_dir_all(paths.config().parent().unwrap()).unwrap();
    std::fs::write(paths.config(), CONFIG).unwrap();
    Config::load(&paths).unwrap()
}

struct Loop {
    script: Arc<Mutex<Script>>,
    snapshot: watch::Sender<Snapshot>,
    stop: mpsc::Sender<()>,
}

impl Loop {
    async fn run(self, mut queue: mpsc::Receiver<Submission>) {
        while let Some(Submission { command, caller, answer }) = queue.recv().await {
            assert_eq!(caller.uid, nix::unistd::geteuid().as_raw());
            let refuse = self.script().refuse.take();
            if let Some(refused) = refuse {
                let _ = answer.send(Err(refused));
                continue;
            }
            self.take(command, answer).await;
        }
    }

    async fn take(&self, command: Command, answer: oneshot::Sender<Result<Answer, Refused>>) {
        match command {
            Command::Prepare { source, then } => self.prepare(source, then, answer).await,
            Command::Plan { .. } => drop(answer.send(Ok(Answer::Plan(plan())))),
            Command::Activate => self.done("activate", answer),
            Command::Cancel => self.done("cancel", answer),
            Command::Check => {
                let _ = answer.send(Ok(Answer::Checked { blockers: self.script().blockers.clone() }));
            }
            Command::Allow { bundle } => self.done(&format!("allow {bundle}"), answer),
            Command::Commit => {
                // Answered before it shows, as a real loop may.
                self.done("commit", answer);
                pause().await;
                let (a, b) = (BootStatus::Good, BootStatus::Good);
                let view = BootView { settings: Settings::Intact, primary: Group::A, a, b };
                self.snapshot.send_modify(|snapshot| snapshot.view = Ok(view));
            }
            Command::RollBack => {
                let installed = Deployment { target: Group::A, ..deployment("stub-0", "-") };
                self.snapshot.send_modify(|snapshot| snapshot.record.installed = Some(installed));
                advance(&self.snapshot, &Step::RollingBackInstalled);
                self.done("rollback", answer);
                self.reboot().await;
            }
        }
    }

    fn done(&self, event: &str, answer: oneshot::Sender<Result<Answer, Refused>>) {
        self.script().events.push(event.to_owned());
        let _ = answer.send(Ok(Answer::Done));
    }

    async fn prepare(&self, source: Source, then: Then, answer: oneshot::Sender<Result<Answer, Refused>>) {
        let word = if then == Then::Stop { "stop" } else { "activate" };
        self.script().events.push(format!("prepare {} {word}", source.label()));
        let deployment = Deployment { then, ..deployment("stub-1", &source.label()) };
        // Answered before it shows, as a real loop may.
        let _ = answer.send(Ok(Answer::Accepted { deployment: deployment.clone() }));
        pause().await;
        advance(&self.snapshot, &Step::Preparing(deployment));
        if let Source::Stream(mut stream) = source {
            let read = tokio::task::spawn_blocking(move || {
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).map(|_| bytes)
            });
            match read.await.unwrap() {
                Ok(bytes) => self.script().events.push(read_event(&bytes)),
                Err(error) => return self.script().events.push(format!("broken {}", error.kind())),
            }
        }
        for percent in [0, 50, 100] {
            self.progress(Some(percent));
            pause().await;
        }
        self.progress(None);
        let end = self.script().end.take();
        if let Some(ending) = end {
            return advance(&self.snapshot, &Step::Abandoned(ending));
        }
        advance(&self.snapshot, &Step::Prepared(Transfer::default()));
        if then == Then::Activate {
            pause().await;
            advance(&self.snapshot, &Step::Activating(Baseline::default()));
            advance(&self.snapshot, &Step::Activated);
            self.reboot().await;
        }
    }

    fn progress(&self, percent: Option<u8>) {
        let progress = percent.map(|percent| Progress {
            percent,
            step: "writing root".into(),
            done_bytes: u64::from(percent) << 20,
            total_bytes: 100 << 20,
            ..Progress::default()
        });
        self.snapshot.send_modify(|snapshot| snapshot.progress = progress);
    }

    async fn reboot(&self) {
        if self.script().hold_reboot {
            let blocker = Blocker::new("hooks.deferred", "a hook defers the reboot", "wait");
            self.snapshot.send_modify(|snapshot| snapshot.blocked = vec![blocker]);
            return;
        }
        pause().await;
        let _ = self.stop.try_send(());
    }

    fn script(&self) -> std::sync::MutexGuard<'_, Script> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Long enough for a watcher to see the state: events are a tenth of a second apart.
async fn pause() {
    tokio::time::sleep(Duration::from_millis(250)).await;
}

/// What is listed when a streamed bundle was read to its end.
pub(crate) fn read_event(bytes: &[u8]) -> String {
    let digest: [u8; 32] = sha2::Sha256::digest(bytes).into();
    format!("read {} {}", bytes.len(), Digest(digest))
}

pub(crate) fn refusal(code: &str, message: &str, retryable: bool) -> Refused {
    let error = ErrorReport {
        code: code.into(),
        phase: Phase::Check,
        message: message.into(),
        cause: Vec::new(),
        hint: "a hint".into(),
        retryable,
    };
    Refused { error, blockers: Vec::new() }
}

pub(crate) fn deployment(id: &str, source: &str) -> Deployment {
    Deployment {
        id: DeploymentId(id.into()),
        manifest: Digest([2; 32]),
        product: "demo".into(),
        version: "2.0.0".into(),
        order: 2,
        security_epoch: 0,
        target: Group::B,
        from_version: "1.0.0".into(),
        source: source.into(),
        then: Then::Stop,
        requested_by: "root".into(),
        began: 1_795_228_200,
        images: Vec::new(),
        transfer: None,
        baseline: Baseline::default(),
    }
}

fn plan() -> Plan {
    Plan {
        offer: Offer {
            manifest: Digest([2; 32]),
            product: "demo".into(),
            version: "2.0.0".into(),
            order: 2,
            compatible: vec!["qemu-x86_64".into()],
            requires: Requires::default(),
            security_epoch: 0,
            payloads: Vec::new(),
        },
        target: Group::B,
        base: Some("1.0.0".into()),
        fetch_bytes: 100 << 20,
        write_bytes: 512 << 20,
        zero_bytes: 128 << 20,
        steps: vec!["mark group b unbootable".into(), "write root".into()],
        blockers: vec![Blocker::new("bundle.older", "it is older", "use another")],
    }
}

fn advance(snapshot: &watch::Sender<Snapshot>, step: &Step) {
    let stamp = Stamp { now: 1_795_228_300, boot_id: BootId("boot-1".into()), run: "run-1".into(), booted: Group::A };
    snapshot.send_modify(|snapshot| snapshot.record = snapshot.record.advance(step, &stamp));
}

fn factory() -> Snapshot {
    let slot = |group, number: u32| SlotView {
        role: "root".into(),
        group,
        device: format!("/dev/nvme0n1p{number}"),
        size: 512 << 20,
        partuuid: format!("uuid-{number}"),
    };
    Snapshot {
        record: Record::default(),
        booted: Group::A,
        boot_id: BootId("boot-1".into()),
        release: Release {
            product: "demo".into(),
            version: "1.0.0".into(),
            order: 1,
            compatible: vec!["qemu-x86_64".into()],
            security_epoch: 0,
        },
        view: Ok(BootView {
            settings: Settings::Intact,
            primary: Group::A,
            a: BootStatus::Good,
            b: BootStatus::Unbootable,
        }),
        slots: vec![slot(Group::A, 3), slot(Group::B, 4)],
        progress: None,
        checks: Vec::new(),
        deadline: None,
        blocked: Vec::new(),
        warnings: Vec::new(),
        fault: None,
    }
}
