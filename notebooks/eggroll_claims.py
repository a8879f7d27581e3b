"""EGGROLL's claims, measured: a marimo notebook that is a script as well.

make notebook                                              opens it, at small sizes
python notebooks/eggroll_claims.py                         all experiments in full (up to 20 minutes on two cores)
python notebooks/eggroll_claims.py --smoke --output DIR    the smallest sizes

As a script it writes claims.md and its figures (claims/*.png) into the folder --output: `docs`, or `build` with
--smoke.
"""

import marimo

__generated_with = "0.25.2"
app = marimo.App(width="medium", app_title="EGGROLL's claims, measured")


@app.cell
def _():
    import time
    from pathlib import Path

    import marimo as mo

    from nanoegg_mlx.eggroll import claims
    from nanoegg_mlx.eggroll.claims import figures

    return Path, claims, figures, mo, time


@app.cell
def _(mo):
    mo.md(r"""
    # EGGROLL's claims, measured

    Evolution strategies move the parameters $\mu$ towards the noise of the fitter members,

    $$\mu \leftarrow \mu + \frac{\eta}{N\sigma}\sum_{i=1}^{N} f(\mu + \sigma E_i)\, E_i ,$$

    and EGGROLL ("Evolution Strategies at the Hyperscale") draws the noise of a matrix with low rank,
    $E = AB^\top/\sqrt{r}$, so that a whole population runs through one product with the weights,

    $$x\,(W + \sigma E)^\top = xW^\top + \tfrac{\sigma}{\sqrt r}\,(xB)A^\top .$$

    `nanoegg_mlx.eggroll` holds the method and `nanoegg_mlx.eggroll.claims` the experiments; this notebook shows them.
    The numbers above each sentence in bold type decide it.
    """)
    return


@app.cell
def _(mo):
    arguments = mo.cli_args()
    script = mo.app_meta().mode == "script"
    size_choice = mo.ui.dropdown(
        {"small (seconds)": "smoke", "full (up to 20 minutes)": "full"},
        value="full (up to 20 minutes)" if script and "smoke" not in arguments else "small (seconds)",
        label="Sizes",
    )
    size_choice
    return arguments, script, size_choice


@app.cell
def _(claims, figures, mo, script, size_choice, time):
    def show(name):
        """Runs an experiment. Returns its result and its view."""
        started = time.perf_counter()
        result = claims.run_experiment(name, size_choice.value)
        if script:
            print(f"{name}, {time.perf_counter() - started:.0f} s: {result.verdict}", flush=True)
            return result, None
        theme = "dark" if mo.app_meta().theme == "dark" else "light"
        parts = [
            mo.md(f"## {result.title}\n\n{result.notes}"),
            mo.image(figures.png(name, result, theme), alt=result.title),
            mo.accordion({"Table": mo.md(claims.table(result.rows))}),
            mo.md(f"**{result.verdict}**"),
        ]
        return result, mo.vstack(parts)

    return (show,)


@app.cell
def _(show):
    quadratic, _view = show("quadratic")
    _view
    return (quadratic,)


@app.cell
def _(show):
    stability, _view = show("stability")
    _view
    return (stability,)


@app.cell
def _(show):
    step_reward, _view = show("step_reward")
    _view
    return (step_reward,)


@app.cell
def _(show):
    two_moons, _view = show("two_moons")
    _view
    return (two_moons,)


@app.cell
def _(show):
    low_rank, _view = show("low_rank")
    _view
    return (low_rank,)


@app.cell
def _(show):
    aggregate_rank, _view = show("aggregate_rank")
    _view
    return (aggregate_rank,)


@app.cell
def _(show):
    throughput, _view = show("throughput")
    _view
    return (throughput,)


@app.cell
def _(show):
    cartpole, _view = show("cartpole")
    _view
    return (cartpole,)


@app.cell
def _(show):
    digits, _view = show("digits")
    _view
    return (digits,)


@app.cell
def _(show):
    update_variance, _view = show("update_variance")
    _view
    return (update_variance,)


@app.cell
def _(
    aggregate_rank,
    cartpole,
    digits,
    low_rank,
    quadratic,
    stability,
    step_reward,
    throughput,
    two_moons,
    update_variance,
):
    results = {
        "quadratic": quadratic,
        "stability": stability,
        "step_reward": step_reward,
        "two_moons": two_moons,
        "low_rank": low_rank,
        "aggregate_rank": aggregate_rank,
        "throughput": throughput,
        "cartpole": cartpole,
        "digits": digits,
        "update_variance": update_variance,
    }
    return (results,)


@app.cell
def _(mo, results):
    mo.md(
        "## In one sentence each\n\n"
        + "\n".join(
            f"{number}. {'holds' if result.holds else '**does not hold**'}: {result.verdict}"
            for number, result in enumerate(results.values(), 1)
        )
    )
    return


@app.cell
def _(Path, arguments, claims, figures, results, script, size_choice):
    if script:
        smoke = size_choice.value == "smoke"
        folder = Path(arguments.get("output") or ("build" if smoke else "docs"))
        (folder / "claims").mkdir(parents=True, exist_ok=True)
        for _name, _result in results.items():
            for _theme in ("light", "dark"):
                (folder / "claims" / f"{_name}-{_theme}.png").write_bytes(figures.png(_name, _result, _theme))
        _flag = " --smoke` (sizes that show that it runs; they decide nothing)" if smoke else "`"
        opening = (
            f"Written by `python notebooks/eggroll_claims.py{_flag} on {claims.machine()}. Spreads are standard "
            "deviations over the seeds, unless stated otherwise. Times and ratios of times hold for this machine."
        )
        text = claims.page(results, opening, list(results), "claims/")
        (folder / "claims.md").write_text(text, encoding="utf-8")
        print(f"Written: {folder / 'claims.md'} and {2 * len(results)} figures in {folder / 'claims'}.")
    return


if __name__ == "__main__":
    app.run()
