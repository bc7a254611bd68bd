//! The report of a run as a page.

use super::{evaluation, log_of_four, started, step};
use burn_lora_train::{
    TrainError,
    data::Span,
    watch::{EvalMetrics, Finished, HtmlReport, Observer, Started, StepMetrics, StopReason},
};
use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

fn read(path: &Path) -> String {
    let page = fs::read_to_string(path).unwrap();
    check(&page);
    page
}

/// Checks that each tag is closed in its turn, and that the page loads nothing.
fn check(page: &str) {
    const VOID: [&str; 3] = ["!doctype", "meta", "br"];
    let (mut open, mut rest) = (Vec::<&str>::new(), page);
    while let Some(at) = rest.find('<') {
        let end = at + rest[at..].find('>').expect("a tag has an end");
        let tag = &rest[at + 1..end];
        rest = &rest[end + 1..];
        let name = tag.trim_start_matches('/').split([' ', '/', '\n']).next().unwrap();
        if tag.starts_with('/') {
            assert_eq!(open.pop(), Some(name), "{tag} closes another");
        } else if !VOID.contains(&name) && !tag.ends_with('/') {
            open.push(name);
        }
        if ["style", "script"].contains(&name) && !tag.starts_with('/') {
            rest = &rest[rest.find(&format!("</{name}>")).expect("it is closed")..];
        }
    }
    assert!(open.is_empty(), "{open:?} are open");
    for loads in ["http://", "https://", "src=", "url(", "@import", "<link", "<img", "<iframe"] {
        assert!(!page.contains(loads), "{loads}");
    }
    assert!(!page.contains("NaN") && !page.contains("inf "));
}

/// The numbers of points of the curves of a figure.
fn curves(page: &str, title: &str) -> Vec<usize> {
    let figures = page.split("<figure").skip(1);
    let of_title = |figure: &&str| figure.contains(&format!("<h3>{title}</h3>"));
    let figure = figures.map(|figure| figure.split("</figure>").next().unwrap()).find(of_title);
    let curves = figure.unwrap_or_default().split("class=\"curve").skip(1);
    let points = |curve: &str| curve.split('>').next().unwrap().matches(['M', 'L']).count();
    curves.map(points).collect()
}

fn end(reason: StopReason, steps: usize) -> Finished {
    Finished { steps, seconds: 4980.0, reason, best: None, best_metric: "loss".into(), loss: 0.15 }
}

#[test]
fn a_run_from_its_start_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("made/on demand/report.html");
    let mut report = HtmlReport::new(&path);
    report.every(Duration::ZERO).facts("Model", [("parameters", "8")]);
    report.facts("Model", [("parameters", "9")]).facts("Data", [("examples", "40")]);
    report.started(&started(None)).unwrap();
    let page = read(&path);
    for part in ["<h1>on demand</h1>", "Running, step 0 of 10", "<dt>parameters</dt><dd>9</dd>"] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    assert!(!page.contains("<dd>8</dd>") && !page.contains("<figure"));
    for i in 1..=4 {
        report.step(&step(i)).unwrap();
        assert!(read(&path).contains(&format!("Running, step {i} of 10")));
    }
    report.evaluated(&evaluation(4)).unwrap();
    let page = read(&path);
    assert_eq!(curves(&page, "Loss"), [4, 4, 2]);
    for title in ["Learning rate", "Memory reserved, GiB"] {
        assert_eq!(curves(&page, title), [4], "{title}");
    }
    for title in ["Gradient norm", "Tokens per second"] {
        assert_eq!(curves(&page, title), [4, 4], "{title}");
    }
    assert_eq!(curves(&page, "Mean token accuracy"), [4, 4, 2]);
    assert_eq!(curves(&page, "Perplexity"), [2]);
    for part in ["<dd>1.5000</dd>", "<dd>1.00 GiB</dd>", "about 0 s left", "Evaluations (1)"] {
        assert!(page.contains(part), "no {part} in {page}");
    }
    for (reason, text) in [
        (StopReason::Done, "Finished, 4 steps · 1 h 23 min"),
        (StopReason::EarlyStopping, "Stopped early at step 4 of 10 · 1 h 23 min"),
        (StopReason::Interrupted, "Interrupted at step 4 of 10 · 1 h 23 min"),
    ] {
        report.finished(&end(reason, 4)).unwrap();
        let page = read(&path);
        assert!(page.contains(text) && !page.contains("data-written="), "no {text} in {page}");
    }
    // What comes afterwards is in it, too.
    report.answer("The model now", "why?", "because");
    report.write().unwrap();
    assert!(read(&path).contains("because"));
}

#[test]
fn updates_have_a_least_distance_and_the_end_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let mut report = HtmlReport::new(&path);
    report.every(Duration::from_secs(3600));
    report.started(&started(None)).unwrap();
    report.step(&step(1)).unwrap();
    assert!(read(&path).contains("step 0 of 10"));
    let error = TrainError::NotFinite {
        step: 2,
        what: "loss",
        value: f64::INFINITY,
        batch: "<b>.jsonl:1".to_owned(),
        advice: "Lower it".to_owned(),
    };
    report.failed(&error);
    let page = read(&path);
    assert!(page.contains("Failed after step 1 of 10") && page.contains("&lt;b&gt;.jsonl:1"));
}

#[test]
fn a_resumed_run_has_the_whole_curve() {
    let folder = tempfile::tempdir().unwrap();
    log_of_four(folder.path());
    let path = folder.path().join("report.html");
    let mut report = HtmlReport::new(&path);
    report.started(&started(Some(2))).unwrap();
    for i in 3..=5 {
        report.step(&step(i)).unwrap();
    }
    report.finished(&end(StopReason::Done, 5)).unwrap();
    let page = read(&path);
    assert_eq!(curves(&page, "Loss"), [5, 5, 2]);
    assert!(page.contains("since step 2"));
    // A new run has not, and one without a log has what it has.
    report.started(&started(None)).unwrap();
    assert!(curves(&read(&path), "Loss").is_empty());
    fs::remove_file(folder.path().join("metrics.jsonl")).unwrap();
    report.started(&started(Some(2))).unwrap();
    report.step(&step(3)).unwrap();
    report.write().unwrap();
    assert_eq!(curves(&read(&path), "Loss"), [2, 2]);
    // A broken one is an error, as it is of the log.
    fs::write(folder.path().join("metrics.jsonl"), "nonsense\n").unwrap();
    assert!(matches!(report.started(&started(Some(2))), Err(TrainError::Format { .. })));
}

#[test]
fn foreign_text_stays_text() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let bad = "</pre></style></script><script>alert('1')</script>\u{1b}[31m\0 & \"x\" \u{202e}";
    let good = "&lt;/pre&gt;&lt;/style&gt;&lt;/script&gt;&lt;script&gt;alert(&#39;1&#39;)\
                &lt;/script&gt;␛[31m␀ &amp; &quot;x&quot; \\u{202e}";
    let mut report = HtmlReport::new(&path);
    report.title(bad).settings(bad).facts(bad, [(bad, bad)]).answer(bad, bad, bad);
    let span = Span { text: bad.to_owned(), trained: true, special: true };
    report.example(bad, vec![span]);
    report.started(&started(None)).unwrap();
    report.step(&StepMetrics { metrics: [(bad, 1.0)].into_iter().collect(), ..step(1) }).unwrap();
    let named = EvalMetrics { metrics: [(bad, 1.0)].into_iter().collect(), ..evaluation(1) };
    report.evaluated(&named).unwrap();
    report.write().unwrap();
    let page = read(&path);
    assert_eq!(page.matches("<script>").count(), 1, "the page's own");
    assert!(!page.contains(['\0', '\u{1b}', '\u{202e}']));
    // Title twice, settings, facts thrice, answer thrice, example twice, figure twice, table once.
    assert_eq!(page.matches(good).count(), 14);
}

#[test]
fn trained_and_special_tokens_are_marked_and_long_texts_shortened() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let span = |text: &str, trained, special| Span { text: text.to_owned(), trained, special };
    let mut report = HtmlReport::new(&path);
    let prompt = format!("begin {} end", "ü".repeat(1_000_000));
    let spans =
        vec![span(&prompt, false, false), span("yes", true, false), span("<end>", true, true)];
    report.example("chats.jsonl:1", spans);
    report.write().unwrap();
    let page = read(&path);
    for part in [
        "<h3>chats.jsonl:1</h3>",
        "begin üü",
        " … 996,010 characters … ",
        "üü end<mark>yes</mark><mark><span class=\"special\">&lt;end&gt;</span></mark>",
        "Not started",
    ] {
        assert!(page.contains(part), "no {part}");
    }
    assert!(page.len() < 40_000, "{} bytes", page.len());
}

/// A run with noise, a spike and a gap, of `steps` steps.
fn long_run(path: &Path, steps: usize) -> HtmlReport {
    let mut report = HtmlReport::new(path);
    report.every(Duration::from_secs(3600)).title("SmolLM2-135M-Instruct → parcels");
    report.started(&Started { steps, examples: 8000, ..started(None) }).unwrap();
    for i in 1..=steps {
        let x = i as f64 / steps as f64;
        let noise = ((i * 7919) % 10_007) as f64 / 10_007.0 - 0.5;
        let metrics = StepMetrics {
            epoch: 3.0 * x,
            loss: if i == steps / 2 {
                f64::NAN
            } else {
                1.1 + 1.3 * (-5.0 * x).exp() + 0.3 * noise
            },
            grad_norm: if i == steps / 3 { 4.0 } else { 0.8 + 0.4 * noise + (-20.0 * x).exp() },
            learning_rate: 2e-4 * (x / 0.05).min((1.0 - x) / 0.95),
            num_tokens: 16_384 * i as u64,
            tokens_per_second: 10_032.0 + 400.0 * noise,
            step_seconds: 1.633,
            memory: Some((9 << 30) + ((i as u64 * 40 / steps as u64) << 25)),
            metrics: [("mean_token_accuracy", 0.5 + 0.2 * x + 0.1 * noise)].into_iter().collect(),
            ..step(i)
        };
        report.step(&metrics).unwrap();
        if i % (steps / 12) == 0 {
            let loss = 1.2 + 1.2 * (-5.0 * x).exp() + 0.1 * x;
            let metrics = [("perplexity", loss.exp()), ("mean_token_accuracy", 0.48 + 0.18 * x)];
            let metrics = metrics.into_iter().collect();
            let epoch = 3.0 * x;
            report.evaluated(&EvalMetrics { epoch, loss, metrics, ..evaluation(i) }).unwrap();
        }
    }
    report
}

#[test]
fn a_long_run_has_a_small_page() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    let mut report = long_run(&path, 100_000);
    let begin = Instant::now();
    report.write().unwrap();
    println!("written in {:?}", begin.elapsed());
    let page = read(&path);
    println!("{} bytes", page.len());
    assert!(page.len() < 200_000, "{} bytes", page.len());
    let loss = curves(&page, "Loss");
    assert!(loss.len() == 3 && loss.iter().all(|points| (12..=1001).contains(points)), "{loss:?}");
    // The spike of the norm is the highest point of its figure.
    let figure = page.split("<h3>Gradient norm</h3>").nth(1).unwrap();
    assert!(figure.split("</svg>").next().unwrap().contains(" 53.57L"));
}

#[test]
fn a_page_that_cannot_be_written_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.html");
    fs::create_dir_all(path.join("in the way")).unwrap();
    let error = HtmlReport::new(&path).started(&started(None)).unwrap_err();
    assert!(matches!(error, TrainError::Io { .. }));
    assert!(error.to_string().contains("report.html"), "{error}");
}

/// Chromium, by its name or `BURN_LORA_CHROMIUM`.
fn chromium() -> Command {
    let program = env::var_os("BURN_LORA_CHROMIUM").unwrap_or("chromium".into());
    let mut command = Command::new(program);
    command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]);
    command
}

/// With `BURN_LORA_PICTURES` the page and pictures of it stay, to be looked at.
#[test]
#[ignore = "wants Chromium (`chromium`, or the program that BURN_LORA_CHROMIUM names)"]
fn a_browser_shows_the_page() {
    let folder = tempfile::tempdir().unwrap();
    let keep = env::var_os("BURN_LORA_PICTURES").map(PathBuf::from);
    let out = fs::canonicalize(keep.as_deref().unwrap_or(folder.path())).unwrap();
    let path = out.join("report.html");
    let mut report = long_run(&path, 1200);
    report.settings(SETTINGS);
    report.facts(
        "Model",
        [
            ("parameters", "134,515,008"),
            ("trained", "4,884,480 (3.63 %)"),
            ("quantized weights", "52.3 MiB"),
            ("other weights", "54.0 MiB"),
            ("adapter", "18.6 MiB"),
            ("device", "Cuda(0)"),
        ],
    );
    let data = |examples: &'static str| {
        [("examples", examples), ("trained tokens", "812,004 (41.3 %)"), ("truncated", "12")]
    };
    report.facts("Training data", data("8,000")).facts("Validation data", data("420"));
    let question = "Where is my parcel?";
    report.answer(
        "The model before",
        question,
        "A parcel is a package that is sent by mail.\n\n1. It has an address.\n2. It has a stamp.",
    );
    report.answer("The model now", question, "May I have its number?");
    let span = |text: &str, trained, special| Span { text: text.to_owned(), trained, special };
    for i in 1..=2 {
        report.example(
            &format!("chats.jsonl:{i}"),
            vec![
                span("<|im_start|>", false, true),
                span("user\nWhere is my parcel?", false, false),
                span("<|im_end|>", false, true),
                span("\n", false, false),
                span("<|im_start|>", false, true),
                span("assistant\n", false, false),
                span("May I have its number? It is on the receipt.", true, false),
                span("<|im_end|>", true, true),
            ],
        );
    }
    report.write().unwrap();
    let page = read(&path);
    let url = format!("file://{}", path.display());
    if keep.is_some() {
        for (name, size, dark) in [
            ("light", "1200,2700", false),
            ("dark", "1200,2700", true),
            ("phone", "500,4400", false),
        ] {
            let mut command = chromium();
            command.arg(format!("--screenshot={}", out.join(name).with_extension("png").display()));
            command.arg(format!("--window-size={size}"));
            if dark {
                command.arg("--blink-settings=preferredColorScheme=0");
            }
            assert!(command.arg(&url).output().unwrap().status.success());
        }
    }
    let output = chromium().args(["--enable-logging=stderr", "--dump-dom", &url]).output().unwrap();
    let (dom, log) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    // The script ran to its end, and neither it nor the policy complained.
    assert!(dom.contains("<html lang=\"en\" class=\"ready\">"), "{dom}\n{log}");
    assert!(!log.contains("CONSOLE"), "{log}");
    for title in ["Loss", "Learning rate", "Gradient norm", "Mean token accuracy"] {
        let found = curves(&dom, title);
        assert!(!found.is_empty() && found == curves(&page, title), "{title}: {found:?}");
    }
    assert_eq!(dom.matches("<mark>").count(), page.matches("<mark>").count());
}

const SETTINGS: &str = "\
devices = [\"cuda\"]

[model]
path = \"models/SmolLM2-135M-Instruct\"
format = \"nf4\"
double_quant = true
# Not set: adapter, dtype

[adapter]
r = 16
lora_alpha = 32.0
target_modules = \"all-linear\"

[data]
files = [\"chats.jsonl\"]
max_length = 512
valid_split = 0.05

[train]
learning_rate = 0.0002
epochs = 3.0
schedule = \"cosine\"
warmup = { ratio = 0.03 }
";
