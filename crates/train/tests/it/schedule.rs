//! Learning rates against transformers and PyTorch (`testdata/schedules.py`).

use burn_lora_train::{
    TrainError,
    schedule::{DecayKind, LearningRate, MinLr, Plateau, Schedule, Span, Warmup},
};
use serde::Deserialize;

#[derive(Deserialize)]
struct Golden {
    base: f64,
    schedules: Vec<Case>,
    losses: Vec<Option<f64>>,
    plateaus: Vec<PlateauCase>,
}

#[derive(Deserialize)]
struct Case {
    schedule: Schedule,
    warmup: Warmup,
    total: usize,
    rates: Vec<f64>,
}

#[derive(Deserialize)]
struct PlateauCase {
    schedule: Schedule,
    rates: Vec<f64>,
}

fn golden() -> Golden {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/schedules.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

#[track_caller]
fn assert_close(found: f64, expected: f64, what: &str) {
    let error = (found - expected).abs();
    // Cosines of different mathematics libraries differ in the last bit.
    assert!(error <= 1e-14 * expected.abs() + 1e-20, "{what}: {found:e} instead of {expected:e}");
}

#[test]
fn rates_are_those_of_transformers() {
    let golden = golden();
    assert_eq!(golden.schedules.len(), 46);
    for case in golden.schedules {
        let rate = LearningRate::new(case.schedule, case.warmup, golden.base, case.total).unwrap();
        for (step, &expected) in case.rates.iter().enumerate() {
            let what = format!("{:?} {:?} step {step}", case.schedule, case.warmup);
            assert_close(rate.rate(step), expected, &what);
        }
    }
}

#[test]
fn plateaus_are_those_of_pytorch() {
    let golden = golden();
    for case in golden.plateaus {
        let mut rate =
            LearningRate::new(case.schedule, Warmup::Steps(0), golden.base, 100).unwrap();
        assert_eq!(rate.rate(0), golden.base);
        for (i, (loss, expected)) in golden.losses.iter().zip(case.rates).enumerate() {
            rate.evaluated(loss.unwrap_or(f64::NAN));
            assert_close(rate.rate(i), expected, &format!("{:?} after loss {i}", case.schedule));
        }
    }
}

#[test]
fn a_plateau_resumed_from_json_goes_on_exactly() {
    let golden = golden();
    for case in golden.plateaus {
        let new = || LearningRate::new(case.schedule, Warmup::Steps(0), 0.1 + 0.2, 100).unwrap();
        let mut whole = new();
        for (cut, loss) in golden.losses.iter().enumerate() {
            let json = serde_json::to_string(whole.state()).unwrap();
            let mut resumed = new();
            resumed.resume(serde_json::from_str::<Plateau>(&json).unwrap());
            assert_eq!(resumed, whole, "at {cut}: {json}");
            whole.evaluated(loss.unwrap_or(f64::NAN));
        }
    }
}

#[test]
fn only_a_plateau_hears_of_losses() {
    let mut rate = LearningRate::new(Schedule::Cosine, Warmup::Steps(2), 1.0, 10).unwrap();
    let before = rate.clone();
    (0..50).for_each(|_| rate.evaluated(1.0));
    assert_eq!(rate, before);
}

#[test]
fn warm_up_starts_at_zero() {
    for name in ["linear", "cosine", "polynomial", "constant_with_warmup", "inverse_sqrt"] {
        let rate = LearningRate::new(name.parse().unwrap(), Warmup::Steps(4), 1.0, 20).unwrap();
        let rates: Vec<_> = (0..5).map(|step| rate.rate(step)).collect();
        assert_eq!(rates, [0.0, 0.25, 0.5, 0.75, 1.0], "{name}");
    }
}

#[test]
fn a_warm_up_as_long_as_the_run_divides_by_nothing() {
    for name in ["linear", "cosine", "cosine_with_restarts", "polynomial", "cosine_with_min_lr"] {
        let rate = LearningRate::new(name.parse().unwrap(), Warmup::Ratio(1.0), 1.0, 4).unwrap();
        assert!((0..8).all(|step| rate.rate(step).is_finite()), "{name}");
        assert_eq!(rate.rate(3), 0.75, "{name}");
    }
}

#[test]
fn names() {
    let names = [
        "linear",
        "cosine",
        "cosine_with_restarts",
        "polynomial",
        "constant",
        "constant_with_warmup",
        "inverse_sqrt",
        "reduce_lr_on_plateau",
        "cosine_with_min_lr",
        "warmup_stable_decay",
    ];
    for name in names {
        let schedule: Schedule = name.parse().unwrap();
        let json = serde_json::to_string(&schedule).unwrap();
        assert!(json.contains(&format!("\"{name}\"")), "{json}");
        assert_eq!(serde_json::from_str::<Schedule>(&json).unwrap(), schedule);
    }
    let error = "cosin".parse::<Schedule>().unwrap_err().to_string();
    assert!(error.contains("`schedule` is cosin") && error.contains("`cosine`"), "{error}");
    let unknown = r#"{"polynomial": {"lr_end": 1e-5}}"#;
    assert!(serde_json::from_str::<Schedule>(unknown).is_err());
}

#[test]
fn settings_that_cannot_be_used() {
    let plateau = |factor, threshold, min| Schedule::ReduceLrOnPlateau {
        factor,
        patience: 1,
        threshold,
        cooldown: 0,
        min,
    };
    let stable = |decay, min_ratio| Schedule::WarmupStableDecay {
        decay,
        min_ratio,
        kind: DecayKind::Linear,
    };
    let none = Warmup::Steps(0);
    let cases = [
        ("learning_rate", Schedule::Linear, none, 0.0),
        ("learning_rate", Schedule::Linear, none, f64::NAN),
        ("learning_rate", Schedule::Linear, none, f64::INFINITY),
        ("warmup", Schedule::Linear, Warmup::Ratio(1.5), 1.0),
        ("warmup", Schedule::Linear, Warmup::Ratio(f64::NAN), 1.0),
        ("warmup", Schedule::Constant, Warmup::Steps(1), 1.0),
        ("warmup", plateau(0.5, 0.0, 0.0), Warmup::Ratio(0.1), 1.0),
        ("cycles", Schedule::CosineWithRestarts { cycles: 0 }, none, 1.0),
        ("power", Schedule::Polynomial { power: 0.0, end: 0.0 }, none, 1.0),
        ("end", Schedule::Polynomial { power: 1.0, end: 2.0 }, none, 1.0),
        ("timescale", Schedule::InverseSqrt { timescale: Some(0) }, none, 1.0),
        ("factor", plateau(1.0, 0.0, 0.0), none, 1.0),
        ("factor", plateau(0.0, 0.0, 0.0), none, 1.0),
        ("threshold", plateau(0.5, 1.0, 0.0), none, 1.0),
        ("min", plateau(0.5, 0.0, 2.0), none, 1.0),
        ("min", Schedule::CosineWithMinLr { min: MinLr::Rate(-1.0) }, none, 1.0),
        ("min", Schedule::CosineWithMinLr { min: MinLr::Ratio(1.1) }, none, 1.0),
        ("min_ratio", stable(Span::Steps(1), -0.1), none, 1.0),
        ("decay", stable(Span::Ratio(-0.1), 0.0), none, 1.0),
        ("decay", stable(Span::Steps(6), 0.0), Warmup::Steps(5), 1.0),
    ];
    for (expected, schedule, warmup, base) in cases {
        match LearningRate::new(schedule, warmup, base, 10) {
            Err(TrainError::Setting { name, .. }) => assert_eq!(name, expected, "{schedule:?}"),
            other => panic!("{expected}: {other:?}"),
        }
    }
    assert!(LearningRate::new(stable(Span::Steps(5), 0.0), Warmup::Steps(5), 1.0, 10).is_ok());
}
