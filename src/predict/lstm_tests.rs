use super::*;
use crate::predict::SnapshotTimes;
use crate::predict::hazard::Window;
use crate::predict::model::Shape;
use crate::predict::net::initialise;
use crate::predict::random::Random;

fn model(features: usize) -> Model {
    sized(Shape { features, hidden: 8 })
}

fn sized(shape: Shape) -> Model {
    let mut model = Model::zeros(shape, 1000);
    model.scale.fill(1.0);
    let mut random = Random::new(5);
    initialise(&mut model, &mut random);
    model.skip.fill_with(|| random.between(-0.3, 0.3) as f32);
    model
}

fn squash(x: f64) -> f64 {
    let x = x.clamp(-3.0, 3.0);
    x * (27.0 + x * x) / (27.0 + 9.0 * x * x)
}

/// One row, number by number.
fn naive(model: &Model, x: &[f32], hidden: &mut [f64], cell: &mut [f64]) -> Vec<f64> {
    let Shape { features, hidden: size } = model.shape;
    let x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
    let sum = |column: usize, width: usize, parts: [(&[f64], &[f32]); 2], bias: &[f32]| {
        let products = parts.map(|(from, weights)| {
            let rows = from.iter().zip(weights.chunks_exact(width));
            rows.map(|(value, row)| value * f64::from(row[column])).sum::<f64>()
        });
        products[0] + products[1] + f64::from(bias[column])
    };
    assert_eq!(x.len(), features);
    let gate = |hidden: &[f64], column| {
        squash(sum(column, 4 * size, [(&x, &model.input), (hidden, &model.recurrent)], &model.bias))
    };
    let before = hidden.to_vec();
    for i in 0..size {
        let [take, keep, show] = [0, 1, 2].map(|g| gate(&before, g * size + i) / 2.0 + 0.5);
        cell[i] = keep * cell[i] + take * gate(&before, 3 * size + i);
        hidden[i] = show * squash(cell[i]);
    }
    (0..BINS)
        .map(|bin| {
            let parts = [(&*hidden, &model.head[..]), (&x[..], &model.skip[..])];
            sum(bin, BINS, parts, &model.head_bias).exp().ln_1p()
        })
        .collect()
}

#[test]
fn a_tick_in_blocks_is_what_each_row_gives_alone() {
    let features = 3;
    let model = model(features);
    let mut lstm = Lstm::new(model.clone());
    let mut random = Random::new(2);
    // More rows than a block, row ids in no order, some never used.
    let rows = BLOCK_ROWS + 300;
    let mut slots: Vec<u32> = (0..rows as u32).map(|row| row * 2 + 1).collect();
    let mut states = vec![(vec![0.0; 8], vec![0.0; 8]); 2 * rows + 2];
    let mut hazards = vec![];
    for tick in 0..5 {
        for row in (1..rows).rev() {
            slots.swap(row, random.index(row + 1));
        }
        let x: Vec<f32> = (0..rows * features).map(|_| random.between(-2.0, 2.0) as f32).collect();
        let fresh: Vec<bool> = (0..rows).map(|_| tick == 0 || random.chance(0.1)).collect();
        lstm.advance(&slots, &x, &fresh, &mut hazards);
        assert_eq!(hazards.len(), rows);
        for row in 0..rows {
            let (hidden, cell) = &mut states[slots[row] as usize];
            if fresh[row] {
                hidden.fill(0.0);
                cell.fill(0.0);
            }
            let expected = naive(&model, &x[row * features..][..features], hidden, cell);
            for (bin, expected) in expected.iter().enumerate() {
                let found = f64::from(hazards[row][bin]);
                assert!(
                    (found - expected).abs() < 1e-4 * (1e-2 + expected),
                    "tick {tick} row {row} bin {bin}: {found}, by hand {expected}"
                );
            }
        }
    }
}

#[test]
fn probabilities_whatever_the_features_are() {
    let mut lstm = Lstm::new(model(2));
    let mut hazards = vec![];
    let x = [1e30, -1e30, 0.0, f32::MAX, 1.0, 1.0];
    for _ in 0..50 {
        lstm.advance(&[0, 1, 2], &x, &[false; 3], &mut hazards);
        for row in &hazards {
            let p = Window::new(900.0).p_modify(row);
            assert!((0.0..=1.0).contains(&p), "{row:?}");
        }
    }
}

#[test]
fn nothing_in_the_tree_spreads_work_over_cores() {
    let arguments = ["tree", "--offline", "--locked", "--edges", "normal", "--prefix", "none"];
    // Of the target as users build it.
    let output = std::process::Command::new(env!("CARGO"))
        .args(arguments)
        .args(["--package", "presnap"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    let tree = String::from_utf8_lossy(&output.stdout);
    assert!(tree.contains("burn-flex "), "{tree}{}", String::from_utf8_lossy(&output.stderr));
    assert!(!tree.contains("rayon"), "{tree}");
}

/// Time of a tick: `cargo test --release --no-default-features --features lstm measure_tick --
/// --ignored --nocapture`.
#[test]
#[ignore = "measures"]
fn measure_tick() {
    for rows in [1024_u32, 4096, 16_384, 65_536] {
        let slots: Vec<u32> = (0..rows).collect();
        let x = vec![0.5; slots.len() * 16];
        let fresh = vec![false; slots.len()];
        let mut lstm = Lstm::new(sized(Shape { features: 16, hidden: 32 }));
        let mut hazards = vec![];
        let plan = Plan::new(Context::new(SnapshotTimes::new().forecast(0)).race(), 1000);
        let mut prediction = Prediction::default();
        let mut times: Vec<_> = (0..9)
            .map(|_| {
                let start = std::time::Instant::now();
                lstm.advance(&slots, &x, &fresh, &mut hazards);
                let network = start.elapsed();
                let start = std::time::Instant::now();
                prediction.clear();
                for row in &hazards {
                    plan.push(row, &mut prediction);
                }
                (network, start.elapsed())
            })
            .collect();
        times.sort();
        println!("{rows} chunks: network {:?}, probabilities {:?}", times[4].0, times[4].1);
    }
}
