//! Lines through measured points, by least squares.

/// A sum of terms that comes as near to the measured figures as one can.
pub struct Fit {
    /// What one unit of each term costs, in the order of a row's terms.
    pub coefficients: Vec<f64>,
    /// Root of the mean square of the residuals, each as a part of what was measured.
    pub residual: f64,
    /// The largest of them, without its sign.
    pub residual_max: f64,
}

/// One measured figure: how much of each term is in it.
pub struct Row {
    pub terms: Vec<f64>,
    pub measured: f64,
}

/// The coefficients whose relative residuals have the least sum of squares. Relative, because the
/// figures differ by factors of hundreds, and the small ones are to fit as well as the large ones.
/// None if the rows do not determine them.
pub fn fit(rows: &[Row]) -> Option<Fit> {
    let terms = rows.first()?.terms.len();
    // The normal equations of `Σ coefficient × term ÷ measured = 1`, the last column the right side.
    let mut equations = vec![vec![0.0; terms + 1]; terms];
    for Row { terms: of, measured } in rows {
        let scaled: Vec<f64> = of.iter().map(|term| term / measured).chain([1.0]).collect();
        for (equation, factor) in equations.iter_mut().zip(&scaled) {
            equation.iter_mut().zip(&scaled).for_each(|(sum, term)| *sum += factor * term);
        }
    }
    let coefficients = solve(equations)?;
    let residuals = rows.iter().map(|Row { terms, measured }| {
        let fitted: f64 = terms.iter().zip(&coefficients).map(|(term, c)| term * c).sum();
        fitted / measured - 1.0
    });
    let squares: f64 = residuals.clone().map(|r| r * r).sum();
    Some(Fit {
        residual: (squares / rows.len() as f64).sqrt(),
        residual_max: residuals.fold(0.0, |max, r| r.abs().max(max)),
        coefficients,
    })
}

/// Gaussian elimination; none if the equations depend on one another.
fn solve(mut equations: Vec<Vec<f64>>) -> Option<Vec<f64>> {
    let unknowns = equations.len();
    for column in 0..unknowns {
        let size = |row: &usize| equations[*row][column].abs();
        let pivot = (column..unknowns).max_by(|a, b| size(a).total_cmp(&size(b)))?;
        equations.swap(column, pivot);
        let pivot = equations[column].clone();
        // Relative to the sums, which are positive: what is left of them when they cancel.
        if pivot[column].abs() < 1e-300 {
            return None;
        }
        for equation in equations.iter_mut().skip(column + 1) {
            let factor = equation[column] / pivot[column];
            equation.iter_mut().zip(&pivot).for_each(|(value, p)| *value -= factor * p);
        }
    }
    let mut solution = vec![0.0; unknowns];
    for row in (0..unknowns).rev() {
        let known: f64 = (row + 1..unknowns).map(|at| equations[row][at] * solution[at]).sum();
        solution[row] = (equations[row][unknowns] - known) / equations[row][row];
    }
    solution.iter().all(|value| value.is_finite()).then_some(solution)
}

/// Finds a known line again; part of the bench's trial, because a bench has no unit tests.
pub fn check() {
    let cost = |payloads: f64, bytes: f64| 4.0 + 0.25 * payloads + 0.0005 * bytes;
    let points = [(1.0, 200.0), (1.0, 1e6), (10.0, 1_500.0), (1_000.0, 150_000.0)];
    let rows: Vec<Row> = points
        .iter()
        .map(|(payloads, bytes)| Row {
            terms: vec![1.0, *payloads, *bytes],
            measured: cost(*payloads, *bytes),
        })
        .collect();
    let found = fit(&rows).expect("four points determine three terms");
    let near = |a: f64, b: f64| (a / b - 1.0).abs() < 1e-6;
    let is_found = found.coefficients.iter().zip([4.0, 0.25, 0.0005]).all(|(a, b)| near(*a, b));
    assert!(is_found && found.residual < 1e-6, "{:?}", found.coefficients);
    let same = |measured| Row { terms: vec![1.0], measured };
    let mean = fit(&[same(1.0), same(3.0)]).expect("one term");
    // 1 and 3 as seen from 1.2: one fifth above the one, three fifths below the other.
    assert!(near(mean.coefficients[0], 1.2) && near(mean.residual_max, 0.6));
}
