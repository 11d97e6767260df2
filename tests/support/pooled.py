"""Answers of the analyses by other means, from pooled rows: scikit-learn, neuroCombat's shrinkage, or plain numpy.

Each function takes the people, the analysis, and the tables that it is given of them: only from these can be known
which rows a site's private seed draws.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from neuroCombat.neuroCombat import aprior, bprior, it_sol
from scipy.interpolate import BSpline
from scipy.optimize import nnls
from scipy.special import log_softmax
from scipy.stats import levene
from sklearn import linear_model
from sklearn.decomposition import PCA
from sklearn.metrics import balanced_accuracy_score, roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from harmonization import (
    CCA,
    ComBat,
    ComBatGAM,
    CovarianceDistance,
    CovBat,
    CrossValidatedCCA,
    CrossValidatedLogistic,
    CrossValidatedPermanova,
    CrossValidatedRidge,
    LateFusion,
    LinearRegression,
    LogisticRegression,
    LongitudinalComBat,
    Permanova,
    Projection,
    Residualization,
    RidgeRegression,
    SiteClassification,
    SiteSpread,
    SiteTable,
    SiteVariance,
    SoftmaxRegression,
)
from tests.support.people import People
from tests.support.plain_loops import parts_of

Answer = dict[str, Any]
Tables = list[SiteTable]


def trainings(folds: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the training rows, as a mask [n], with each fold left out."""
    for fold in range(folds.max() + 1):
        yield folds != fold


# --- harmonization ---------------------------------------------------------------------------------------------------


def combat_model(people: People, analysis: ComBat | CovBat, tables: Tables) -> Answer:
    effects = people.effects(by_site=True)
    return {
        "coefficients": effects,
        "grand_mean": people.features.mean(axis=0) - people.covariates.mean(axis=0) @ effects,
        "pooled_variance": (people.residuals**2).mean(axis=0),
        "n": len(people.site),
    }


def combat_of_reference(people: People, analysis: ComBat, tables: Tables) -> Answer:
    effects = people.effects(by_site=True)
    reference = people.take(people.rows[[table.site for table in tables].index(analysis.reference)])
    return {
        "coefficients": effects,
        "grand_mean": reference.features.mean(axis=0) - reference.covariates.mean(axis=0) @ effects,
        "pooled_variance": (reference.centred - _centred(reference.covariates) @ effects).var(axis=0),
    }


def combat_rows(people: People, analysis: ComBat | CovBat, tables: Tables) -> np.ndarray:
    """Harmonized rows, for the priors "parametric" and "none"."""
    model = combat_model(people, analysis, tables)
    kept = people.covariates @ model["coefficients"] + model["grand_mean"]
    deviation = np.sqrt(model["pooled_variance"])
    z, cleaned = (people.features - kept) / deviation, np.empty_like(people.features)
    for rows in people.rows:
        gamma, delta = z[rows].mean(axis=0), z[rows].var(axis=0, ddof=1)
        if analysis.prior == "parametric":
            spread = gamma.var(ddof=1)
            gamma, delta = it_sol(z[rows].T, gamma, delta, gamma.mean(), spread, aprior(delta), bprior(delta))
        cleaned[rows] = (z[rows] - gamma) / np.sqrt(delta)
    return cleaned * deviation + kept


def covbat_rows(people: People, analysis: CovBat, tables: Tables) -> np.ndarray:
    cleaned, model = combat_rows(people, analysis, tables), combat_model(people, analysis, tables)
    residual = cleaned - model["grand_mean"] - people.covariates @ model["coefficients"]
    mean, sd = residual.mean(axis=0), residual.std(axis=0, ddof=1)
    left, values, components = np.linalg.svd((residual - mean) / sd, full_matrices=False)
    kept = int((np.cumsum(values**2) / (values**2).sum() > analysis.variance).argmax()) + 1
    scores, components = left[:, :kept] * values[:kept], components[:kept]
    alike = np.empty_like(scores)
    within = sum(((scores[rows] - scores[rows].mean(axis=0)) ** 2).sum(axis=0) for rows in people.rows)
    for rows in people.rows:
        site_mean, site_sd = scores[rows].mean(axis=0), scores[rows].std(axis=0, ddof=1)
        alike[rows] = (scores[rows] - site_mean) / site_sd * np.sqrt(within / len(scores))
    return cleaned + sd * ((alike + scores.mean(axis=0) - scores) @ components)


def penalized_splines(people: People, analysis: ComBatGAM, tables: Tables) -> Answer:
    """ComBat-GAM of one penalty, the first covariate smooth: least squares with rows for the penalty."""
    (_, lower, upper), K = analysis.smooth[0], analysis.n_splines
    values, step = people.covariates[:, 0], (upper - lower) / (K - 3)
    splines = BSpline(lower + step * np.arange(-3, K + 1), np.eye(K), 3)
    inside = np.clip(values, lower, upper)
    basis = splines(inside) + (values - inside)[:, None] * splines.derivative()(inside)
    expanded = np.column_stack([basis[:, 1:], people.covariates[:, 1:]])
    X = np.column_stack([expanded, people.one_hot])
    bends = np.zeros((K - 2, X.shape[1]))
    bends[:, : K - 1] = np.sqrt(analysis.penalties[0]) * np.diff(np.eye(K), n=2, axis=0)[:, 1:]
    solve = np.linalg.pinv(np.concatenate([X, bends]))[:, : len(X)]
    everything = solve @ people.centred
    effects = everything[: expanded.shape[1]]
    return {
        "coefficients": effects,
        "grand_mean": people.features.mean(axis=0) - expanded.mean(axis=0) @ effects,
        "pooled_variance": ((people.centred - X @ everything) ** 2).mean(axis=0),
        "edf": np.full(len(people.centred.T), (solve * X.T).sum()),
    }


def random_intercepts(people: People, analysis: LongitudinalComBat, tables: Tables) -> Answer:
    """Henderson's method III by dummy columns, then least squares of quasi-demeaned rows (Fuller & Battese, 1974)."""
    sites, q = people.one_hot, people.covariates.shape[1]
    intercepts = np.eye(people.participant.max() + 1)[people.participant]
    visits = intercepts.sum(axis=0)[people.participant, None]
    basis = np.linalg.qr(np.column_stack([sites, people.covariates])).Q
    squares = ((people.centred - basis @ (basis.T @ people.centred)) ** 2).sum(axis=0)
    own = people.covariates - _mean_of_own(people.covariates, intercepts)
    left = people.centred - _mean_of_own(people.centred, intercepts)
    rank = np.linalg.matrix_rank(own) if q else 0
    free = len(own) - intercepts.shape[1] - rank
    within = ((left - own @ np.linalg.lstsq(own, left, rcond=1e-10)[0]) ** 2).sum(axis=0) / free
    trace = len(own) - ((basis.T @ intercepts) ** 2).sum()
    between = np.maximum(squares - (len(own) - sites.shape[1] - q) * within, 0) / trace
    solved = []
    for feature, (sigma, tau) in enumerate(zip(within, between, strict=True)):
        share = 1 - np.sqrt(sigma / (sigma + visits * tau))
        rows = np.column_stack([sites, people.covariates, people.centred[:, feature]])
        rows = rows - share * _mean_of_own(rows, intercepts)
        solved.append(np.linalg.lstsq(rows[:, :-1], rows[:, -1], rcond=None)[0])
    effects = np.array(solved).T
    mean = people.features.mean(axis=0) + sites.mean(axis=0) @ effects[: sites.shape[1]]
    return {
        "within": within,
        "between": between,
        "coefficients": effects[sites.shape[1] :],
        "grand_mean": mean,
    }


def _mean_of_own(values: np.ndarray, one_hot: np.ndarray) -> np.ndarray:
    """Mean of `values` [n, k] over the rows of the same column of `one_hot`, for each row."""
    label = one_hot.argmax(axis=1)
    total = np.zeros((one_hot.shape[1], values.shape[1]))
    np.add.at(total, label, values)
    return (total / one_hot.sum(axis=0)[:, None])[label]


def _centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(axis=0)


def residualization(people: People, analysis: Residualization, tables: Tables) -> Answer:
    return {
        "coefficients": people.effects(analysis.site),
        "mean": people.features.mean(axis=0),
        "covariate_mean": people.covariates.mean(axis=0),
    }


# --- components and two views ----------------------------------------------------------------------------------------


def principal_components(people: People, analysis: Projection, tables: Tables) -> Answer:
    pca = PCA(analysis.n_components, svd_solver="full").fit(people.features)
    return {
        "mean": pca.mean_,
        "components": pca.components_,
        "explained_variance": pca.explained_variance_,
        "total_variance": people.features.var(axis=0, ddof=1).sum(),
    }


def _canonical_weights(views: list[np.ndarray], analysis: CCA | CrossValidatedCCA) -> list[np.ndarray]:
    """Weights [columns, k] of centred views. The ridge of shrinkage is that of more rows, one a column."""
    triangles = []
    for view in views:
        size = (view**2).sum() / view.shape[1]
        more = np.sqrt(analysis.shrinkage * size) * np.eye(view.shape[1])
        triangles.append(np.linalg.qr(np.concatenate([np.sqrt(1 - analysis.shrinkage) * view, more])).R)
    whitened = [np.linalg.solve(triangle.T, view.T).T for triangle, view in zip(triangles, views, strict=True)]
    left, _, right = np.linalg.svd(whitened[0].T @ whitened[1])
    return [
        np.linalg.solve(triangle, vectors[:, : analysis.n_components])
        for triangle, vectors in zip(triangles, (left, right.T), strict=True)
    ]


def _correlations(scores: list[np.ndarray]) -> np.ndarray:
    return np.array([np.corrcoef(one, other)[0, 1] for one, other in zip(scores[0].T, scores[1].T, strict=True)])


def canonical_correlations(people: People, analysis: CCA, tables: Tables) -> Answer:
    views = [people.centred, _centred(people.second)]
    weights = _canonical_weights(views, analysis)
    scores = [view @ weight for view, weight in zip(views, weights, strict=True)]
    sign = np.sign(weights[0][np.abs(weights[0]).argmax(axis=0), np.arange(analysis.n_components)])
    return {
        "correlations": _correlations(scores),
        "x_weights": sign * weights[0] / scores[0].std(axis=0, ddof=1),
        "y_weights": sign * weights[1] / scores[1].std(axis=0, ddof=1),
    }


def held_out_correlations(people: People, analysis: CrossValidatedCCA, tables: Tables) -> Answer:
    folds = parts_of(analysis, tables)
    pairings = [np.arange(len(folds))]
    for number in range(analysis.permutations):
        dealt = zip(people.rows, tables, strict=True)
        pairings.append(np.concatenate([rows[analysis.permuted_rows(table, number)] for rows, table in dealt]))
    found, in_training = [], []
    for training in trainings(folds):
        x, y, c = (np.empty_like(values) for values in (people.features, people.second, people.covariates))
        for values, centred in ((people.features, x), (people.second, y), (people.covariates, c)):
            for rows in people.rows:
                centred[rows] = values[rows] - values[rows[training[rows]]].mean(axis=0)
        x, y = (view - c @ np.linalg.lstsq(c[training], view[training], rcond=None)[0] for view in (x, y))
        for pairing in pairings:
            views = [x, y[pairing]]
            weights = _canonical_weights([view[training] for view in views], analysis)
            scores = [view @ weight for view, weight in zip(views, weights, strict=True)]
            found.append(_correlations([score[~training] for score in scores]))
            in_training.append(_correlations([score[training] for score in scores]))
    shape = (analysis.n_folds, len(pairings), analysis.n_components)
    correlations = np.reshape(found, shape).mean(axis=0)
    return {
        "correlations": correlations[0],
        "null": correlations[1:],
        "training_correlations": np.reshape(in_training, shape)[:, 0].mean(axis=0),
        "p_value": (1 + (correlations[1:, 0] >= correlations[0, 0]).sum()) / len(pairings),
    }


# --- prediction ------------------------------------------------------------------------------------------------------


def linear(people: People, analysis: LinearRegression, tables: Tables) -> Answer:
    model = linear_model.LinearRegression().fit(people.features, people.number)
    return {"coef": model.coef_, "intercept": model.intercept_}


def ridge(people: People, analysis: RidgeRegression, tables: Tables) -> Answer:
    model = linear_model.Ridge(analysis.alpha, solver="svd").fit(people.features, people.number)
    return {"coef": model.coef_, "intercept": model.intercept_}


def cross_validated_ridge(people: People, analysis: CrossValidatedRidge, tables: Tables) -> Answer:
    error = np.empty(len(people.site))
    for training in trainings(parts_of(analysis, tables)):
        features, number = people.features[training], people.number[training]
        ridge = linear_model.Ridge(analysis.alphas[0] * len(features), solver="svd")
        model = make_pipeline(StandardScaler(), ridge).fit(features, number)
        error[~training] = people.number[~training] - model.predict(people.features[~training])
    return {
        "r2": 1 - (error**2).mean() / people.number.var(),
        "mean_absolute_error": np.abs(error).mean(),
        "root_mean_squared_error": np.sqrt((error**2).mean()),
    }


def fusion(people: People, analysis: LateFusion, tables: Tables) -> Answer:
    """Predictions of training people left out of the fit by the diagonal of the hat matrix, by singular values."""
    error, weights = np.empty((len(people.site), 4)), []
    for training in trainings(parts_of(analysis, tables)):
        number, n = people.number[training], training.sum()
        mean = number.mean()
        views = [StandardScaler().fit(view[training]).transform(view) for view in (people.features, people.second)]
        views.append(np.concatenate(views, axis=1))
        left_out, predicted = [], []
        for view in views:
            model = linear_model.Ridge(analysis.alphas[0] * n, solver="svd").fit(view[training], number)
            predicted.append(model.predict(view[~training]) - mean)
            left, values, _ = np.linalg.svd(_centred(view[training]), full_matrices=False)
            leverage = 1 / n + (left**2 * (values**2 / (values**2 + model.alpha))).sum(axis=1)
            left_out.append(number - (number - model.predict(view[training])) / (1 - leverage) - mean)
        weights.append(nnls(np.column_stack(left_out[:2]), number - mean)[0])
        predicted.append(np.column_stack(predicted[:2]) @ weights[-1])
        error[~training] = people.number[~training, None] - mean - np.column_stack(predicted)
    r2 = 1 - (error**2).mean(axis=0) / people.number.var()
    gain = error[:, :1] ** 2 - error[:, 2:] ** 2
    return {
        "r2": r2,
        "mean_absolute_error": np.abs(error).mean(axis=0),
        "gain": r2[2:] - r2[0],
        "gain_error": gain.std(axis=0) / np.sqrt(len(error)) / people.number.var(),
        "weights": weights,
    }


def _class_log_probabilities(
    features: np.ndarray, labels: np.ndarray, C: float, others: np.ndarray
) -> tuple[np.ndarray, Any]:
    """Log probabilities of the classes for other rows; and scikit-learn's model, of features about their mean."""
    centre = features.mean(axis=0)
    # newton-cholesky ends where the gradient of the mean loss is below tol, so to all digits after one more step.
    model = linear_model.LogisticRegression(C=C, solver="newton-cholesky", tol=1e-12, max_iter=1000)
    model.fit(features - centre, labels)
    scores = model.decision_function(others - centre)
    scores = np.column_stack([np.zeros(len(scores)), scores]) if scores.ndim == 1 else scores
    model.intercept_ = model.intercept_ - model.coef_ @ centre
    return log_softmax(scores, axis=1), model


def classes(people: People, analysis: LogisticRegression | SoftmaxRegression, tables: Tables) -> Answer:
    labels = people.labels(analysis.classes)
    _, model = _class_log_probabilities(people.features, labels, analysis.C, people.features)
    return {"coef": model.coef_, "intercept": model.intercept_ - model.intercept_.mean() * (analysis.classes > 2)}


def cross_validated_classes(people: People, analysis: CrossValidatedLogistic, tables: Tables) -> Answer:
    n_classes = tables[0].target.shape[1]
    labels, logarithms = people.labels(n_classes), np.empty((len(people.site), n_classes))
    for training in trainings(parts_of(analysis, tables)):
        features = StandardScaler().fit(people.features[training]).transform(people.features)
        logarithms[~training], _ = _class_log_probabilities(
            features[training], labels[training], analysis.Cs[0], features[~training]
        )
    binned = np.floor(np.exp(logarithms) * analysis.bins)
    counted = range(1, 2) if n_classes == 2 else range(n_classes)
    right = logarithms.argmax(axis=1)
    return {
        "log_loss": -logarithms[np.arange(len(labels)), labels].mean(),
        "accuracy": (right == labels).mean(),
        "balanced_accuracy": balanced_accuracy_score(labels, right),
        "auroc": np.mean([roc_auc_score(labels == label, binned[:, label]) for label in counted]),
    }


# --- effects of site -------------------------------------------------------------------------------------------------


def discriminants(people: People, analysis: SiteClassification, tables: Tables) -> Answer:
    right = np.empty(len(people.site), dtype=bool)
    for training in trainings(parts_of(analysis, tables)):
        kept = people.take(training)
        adjusted = people.features - kept.features.mean(axis=0) - people.covariates @ kept.effects(True)
        means = np.stack([adjusted[training & (people.site == site)].mean(axis=0) for site in range(len(people.rows))])
        scale = (adjusted - means[people.site])[training].std(axis=0)
        adjusted, means = adjusted / scale, means / scale
        deviations = (adjusted - means[people.site])[training]
        within = deviations.T @ deviations / (len(deviations) - len(means))
        spherical = np.eye(len(within)) * np.trace(within) / len(within)
        shrunken = (1 - analysis.shrinkage) * within + analysis.shrinkage * spherical
        weights = np.linalg.solve(shrunken, means.T)
        scores = adjusted[~training] @ weights - 0.5 * (means.T * weights).sum(axis=0)
        right[~training] = scores.argmax(axis=1) == people.site[~training]
    return {"balanced_accuracy": np.mean([right[rows].mean() for rows in people.rows])}


def eta_squared(people: People, analysis: SiteVariance, tables: Tables) -> Answer:
    within = sum((_centred(people.centred[rows]) ** 2).sum(axis=0) for rows in people.rows)
    eta = 1 - within / (people.centred**2).sum(axis=0)
    return {"eta_squared": eta, "mean": eta.mean()}


def permanova(people: People, analysis: Permanova, tables: Tables) -> Answer:
    reduced = np.linalg.qr(np.column_stack([np.ones(len(people.site)), people.covariates])).Q
    total = (people.centred**2).sum() - ((reduced.T @ people.centred) ** 2).sum()
    within = (people.residuals**2).sum()
    freedom = len(people.rows) - 1, len(people.site) - len(people.rows) - people.covariates.shape[1]
    return {"r2": 1 - within / total, "pseudo_f": (total - within) / freedom[0] / (within / freedom[1])}


def permanova_in_folds(people: People, analysis: CrossValidatedPermanova, tables: Tables) -> Answer:
    fold = parts_of(analysis, tables)
    folds, cells = np.eye(analysis.n_folds)[fold], analysis.n_folds * people.site + fold
    squares = []
    for groups in (folds, np.eye(cells.max() + 1)[cells]):
        design = np.linalg.qr(np.column_stack([groups[:, groups.any(axis=0)], people.covariates])).Q
        squares.append(((people.centred - design @ (design.T @ people.centred)) ** 2).sum())
    sites, q, k = len(people.rows), people.covariates.shape[1], analysis.n_folds
    freedom = k * (sites - 1), len(people.site) - k * sites - q
    pseudo_f = (squares[0] - squares[1]) / freedom[0] / (squares[1] / freedom[1])
    return {"r2": 1 - squares[1] / squares[0], "pseudo_f": pseudo_f}


def spread(people: People, analysis: SiteSpread, tables: Tables) -> Answer:
    groups = [people.features[rows] for rows in people.rows]
    test = levene(*groups, center=analysis.centre, axis=0)
    logs = np.log([group.var(axis=0, ddof=1) for group in groups])
    return {"f": test.statistic, "p_values": test.pvalue, "geometric_sd": np.exp(logs.std(axis=0, ddof=1))}


def covariance_distance(people: People, analysis: CovarianceDistance, tables: Tables) -> Answer:
    matrix = np.corrcoef if analysis.correlation else np.cov
    matrices = [matrix(people.features[rows].T) for rows in people.rows]
    pooled = np.average(matrices, axis=0, weights=[len(rows) - 1 for rows in people.rows])
    squares = [((one - pooled) ** 2).sum() for one in matrices]
    return {"distance": np.sqrt(np.mean(squares) / (pooled**2).sum())}
