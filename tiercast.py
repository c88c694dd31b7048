"""The command `tiercast`: thin, importing what a command needs when it runs."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from features.errors import Refused, UsageRefused

if TYPE_CHECKING:
    import pandas as pd

    from features.settings import Settings
    from features.tables import Tables

DEMO_CUSTOMERS, DEMO_MONTHS, DEMO_SEED, DEMO_TRIALS = 6000, 24, 7, 5
SERVICE_PORT, UI_PORT = 3000, 5000
DONE, REFUSED, USAGE = 0, 1, 2
SERVERS = ("serve", "ui", "demo")  # they stay up and talk to people


def main(arguments: list[str] | None = None) -> int:
    """Runs one command; returns 0, 1 (refused, with the reason on standard error) or 2 (usage)."""
    asked = _parser().parse_args(arguments)
    # On a busy machine spinning OpenMP threads cost up to twelve times the work (docs/decisions/0006).
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    _end_on_terminate()
    try:
        _require_usable(asked.workspace)
        asked.run(asked)
    except Refused as refused:
        print(f"{type(refused).__name__}: {refused}", file=sys.stderr)
        return USAGE if isinstance(refused, UsageRefused) else REFUSED
    except Exception as error:
        if not _is_of_the_surroundings(error):
            raise
        print(f"{type(error).__name__}: {str(error).splitlines()[0]}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt:
        return 130
    return DONE


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tiercast", description="From a shop's raw tables to scores, served as tiers."
    )
    parser.add_argument("--version", action="version", version=f"tiercast {importlib.metadata.version('tiercast')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    simulate = _command(commands, "simulate", _simulate, "write a simulated shop whose truth is known")
    simulate.add_argument("dir", metavar="DIR", type=Path)
    simulate.add_argument("--customers", type=int, default=DEMO_CUSTOMERS, metavar="N")
    simulate.add_argument("--months", type=int, default=DEMO_MONTHS, metavar="M")
    simulate.add_argument("--seed", type=int, default=DEMO_SEED, metavar="S")

    _with_data(_command(commands, "check", _check, "report what the data hold and what they can support"))

    train = _with_data(_command(commands, "train", _train, "train, judge and register a release as challenger"))
    train.add_argument("--trials", type=_count, default=10, metavar="N", help="search trials per outcome (default: 10)")
    train.add_argument("--seed", type=_count, default=0, metavar="S", help="of everything random (default: 0)")

    promote = _command(commands, "promote", _promote, "make a release the champion, the one that answers")
    promote.add_argument("release", metavar="VERSION|challenger")
    promote.add_argument("--reason", default="", metavar="TEXT", help="kept with the decision")
    _command(commands, "rollback", _rollback, "make the champion before this one the champion again")

    score = _with_data(_command(commands, "score", _score, "the champion's scores and tiers for every customer"))
    score.add_argument("--out", type=Path, required=True, metavar="FILE", help="where to write them: .parquet or .csv")

    serve = _command(commands, "serve", _serve, "answer apps over HTTP, on 127.0.0.1")
    serve.add_argument("--port", type=int, default=SERVICE_PORT)
    ui = _command(commands, "ui", _ui, "review runs and releases in the MLflow UI, on 127.0.0.1")
    ui.add_argument("--port", type=int, default=UI_PORT)

    demo = _command(
        commands, "demo", _demo, "all of it on a simulated shop: simulate, check, train, promote, score, serve"
    )
    demo.add_argument("--exit", action="store_true", help="stop after the first answer instead of staying up")
    return parser


def _command(commands: Any, name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name, help=text, description=text[0].upper() + text[1:] + "."
    )
    command.add_argument(
        "--workspace",
        type=Path,
        default=Path(os.environ.get("TIERCAST_WORKSPACE", "workspace")),
        metavar="DIR",
        help="where state lives (default: $TIERCAST_WORKSPACE or ./workspace)",
    )
    command.set_defaults(run=run)
    if name not in SERVERS:
        command.add_argument("--json", action="store_true", help="answer for programs, on standard output")
    return command


def _with_data(command: argparse.ArgumentParser) -> argparse.ArgumentParser:
    command.add_argument("dir", metavar="DIR", type=Path, help="the folder with the shop's tables or its tiercast.toml")
    command.add_argument("--as-of", metavar="T", help="cutoff; nothing later is read (default: the end of the data)")
    command.add_argument("--settings", type=Path, metavar="FILE", help="settings to use instead of DIR/tiercast.toml")
    return command


def _count(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"a whole number of at least 0 is needed, not {text!r}")
    return int(text)


# The commands


def _simulate(asked: argparse.Namespace) -> None:
    from features.synthetic.shop import simulate

    with _progress("simulate", asked.customers, unit=" customers") as advance:
        told = 0

        def written(customers: int) -> None:
            nonlocal told
            advance(customers - told)
            told = customers

        shop = simulate(asked.dir, asked.customers, asked.months, asked.seed, written)
    rows = dict(shop.rows)
    _answer(
        asked,
        {"folder": str(asked.dir), "rows": rows},
        f"{asked.dir}: " + ", ".join(f"{n:,} {table}" for table, n in rows.items()),
    )


def _check(asked: argparse.Namespace) -> None:
    from training.check import as_text, check

    with _open(asked) as (tables, settings, as_of):
        report = check(tables, settings, as_of)
    _answer(asked, report.to_json(), as_text(report))


def _train(asked: argparse.Namespace) -> None:
    _require_training_packages()
    from training.tracking import register
    from training.train import Request, describe_data, steps, train

    with _open(asked) as (tables, settings, as_of):
        request = Request(as_of, asked.trials, asked.seed)
        with _progress("train", steps(request)) as advance:
            trained = train(tables, settings, request, lambda text: advance(1, text))
        registered = register(asked.workspace, trained, describe_data(tables, request))
    evaluation = trained.evaluation
    answer = {
        "version": registered.version,
        "run_id": registered.run_id,
        "as_of": as_of.isoformat(),
        "evaluation": {
            "cutoff": evaluation.cutoff.isoformat(),
            "customers": evaluation.customers,
            "base_rate": evaluation.base_rate,
        },
        "comparison": json.loads(evaluation.comparison.to_json(orient="index")),
        "notes": list(trained.notes),
    }
    lines = [
        f"judged on {evaluation.customers:,} customers, {evaluation.horizon_days} days from "
        f"{evaluation.cutoff:%Y-%m-%d}, {evaluation.base_rate:.1%} of whom bought again:",
        "",
        evaluation.comparison.to_string(float_format=lambda number: f"{number:.3f}", na_rep="-"),
        "",
        *(f"note: {note}" for note in trained.notes),
        f"release {registered.version} is registered as challenger; "
        "look at it with `tiercast ui`, then `tiercast promote challenger`",
    ]
    _answer(asked, answer, "\n".join(lines))


def _promote(asked: argparse.Namespace) -> None:
    _require_training_packages()
    from training.tracking import promote

    version = promote(asked.workspace, asked.release, asked.reason).version
    _answer(asked, {"champion": version}, f"release {version} is the champion")


def _rollback(asked: argparse.Namespace) -> None:
    _require_training_packages()
    from training.tracking import rollback

    version = rollback(asked.workspace).version
    _answer(asked, {"champion": version}, f"back to release {version}: it is the champion again")


def _score(asked: argparse.Namespace) -> None:
    from features.tables import show_local
    from segments.tiers import tier_table
    from serving.batch import publish_scores, require_writable, score_customers, write_scores
    from training.bundle import load_champion

    require_writable(asked.out)
    release = load_champion(asked.workspace)
    with _open(asked) as (tables, settings, as_of), _progress("score", 2, unit=" steps") as advance:
        scores = score_customers(tables, release, as_of, lambda text: advance(1, text))
    write_scores(scores, asked.out)
    published = publish_scores(scores, asked.workspace)
    table = tier_table(scores, release.tiers, release.bundle.primary_horizon_days)
    answer = {
        "customers": len(scores),
        "model_version": release.version,
        "cutoff": as_of.isoformat(),
        "out": str(asked.out),
        "published": published,
        "tiers": table.to_dict(orient="records"),
    }
    shown = show_local(as_of, settings.timezone)
    done = f"{len(scores):,} customers scored by release {release.version} as of {shown}, into {asked.out}"
    if not published:
        done += "\nthe service goes on answering with the later scores that it has"
    _answer(asked, answer, f"{_tier_text(table, release.bundle.spec.currency)}\n\n{done}")


def _serve(asked: argparse.Namespace) -> None:
    from serving.launch import running, serve, wait_until_ready

    url = f"http://127.0.0.1:{asked.port}"
    with running(serve(asked.workspace, port=asked.port)) as process:
        wait_until_ready(url, process)
        _say(f"answering on {url}, Ctrl-C to stop")
        process.wait()


def _ui(asked: argparse.Namespace) -> None:
    _require_training_packages()
    from serving.launch import require_free, running, wait_until_ready
    from training.tracking import UI_READY_PATH, start_ui

    require_free("127.0.0.1", asked.port)
    url = f"http://127.0.0.1:{asked.port}"
    with running(start_ui(asked.workspace, asked.port)) as process:
        wait_until_ready(url, process, UI_READY_PATH)
        _say(f"MLflow UI on {url}, Ctrl-C to stop")
        process.wait()


def _demo(asked: argparse.Namespace) -> None:
    """Runs the other commands as a newcomer would type them, then keeps both servers up."""
    _require_training_packages()
    from serving.launch import free_port, running, serve, wait_until_ready
    from training.tracking import UI_READY_PATH, start_ui

    shop, scores = asked.workspace / "shop", asked.workspace / "scores.csv"
    if not (shop / "truth.parquet").exists():
        _run(asked, "simulate", str(shop))
    _run(asked, "check", str(shop))
    _run(asked, "train", str(shop), "--trials", str(DEMO_TRIALS))
    _run(asked, "promote", "challenger", "--reason", "demo")
    _run(asked, "score", str(shop), "--out", str(scores))
    ports = free_port(SERVICE_PORT), free_port(UI_PORT)
    service_url, ui_url = (f"http://127.0.0.1:{port}" for port in ports)
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((asked.workspace / "servers.log").open("ab"))
        service = stack.enter_context(running(serve(asked.workspace, port=ports[0], log=log)))
        ui = stack.enter_context(running(start_ui(asked.workspace, ports[1], log)))
        wait_until_ready(service_url, service)
        wait_until_ready(ui_url, ui, UI_READY_PATH)
        _show_first_answer(service_url, ui_url, scores)
        if not asked.exit:
            _say("both stay up until Ctrl-C")
            service.wait()


def _run(asked: argparse.Namespace, *arguments: str) -> None:
    """One command of the demo, shown as it would be typed."""
    print(f"\n$ tiercast {' '.join(arguments)}", flush=True)
    with_workspace = _parser().parse_args([*arguments, "--workspace", str(asked.workspace)])
    with_workspace.run(with_workspace)


def _show_first_answer(service: str, ui: str, scores: Path) -> None:
    """Both addresses, and a curl with the answer it really gets."""
    import csv
    import urllib.request

    with scores.open(newline="", encoding="utf-8") as file:
        customer_ids = [row["customer_id"] for _, row in zip(range(2), csv.DictReader(file), strict=False)]
    body = json.dumps({"customer_ids": customer_ids})
    request = urllib.request.Request(f"{service}/v1/predict", body.encode(), {"Content-Type": "application/json"})
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=30) as response:
        answer = json.loads(response.read())
    print(f"\nservice    {service}\nMLflow UI  {ui}\n")
    print(f"$ curl -s {service}/v1/predict -H 'Content-Type: application/json' -d '{body}'")
    print(json.dumps(answer, indent=2))


# What commands share


def _require_usable(workspace: Path) -> None:
    """Before hours of work rather than after."""
    if workspace.exists() and not workspace.is_dir():
        raise UsageRefused(f"the workspace {workspace} is a file; name a folder with --workspace")
    if set("%?") & set(str(workspace.resolve())):
        raise UsageRefused(f"the workspace {workspace.resolve()} has a % or ? in its name, which addresses cannot hold")


def _is_of_the_surroundings(error: Exception) -> bool:
    """Whether the disk, the permissions or the registry failed, and not this program."""
    return isinstance(error, OSError) or type(error).__module__.startswith(("mlflow.", "sqlalchemy."))


def _end_on_terminate() -> None:
    """Makes SIGTERM end a command as Ctrl-C does: its servers end and its temporary files go."""

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)


@contextlib.contextmanager
def _open(asked: argparse.Namespace) -> Iterator[tuple[Tables, Settings, datetime]]:
    """The shop's tables, its settings, and the cutoff in UTC."""
    from features.sources import load_settings, open_folder
    from features.tables import CONTRACT

    settings = load_settings(asked.dir, asked.settings)
    as_of = _moment(asked.as_of, settings) if asked.as_of is not None else None
    with contextlib.ExitStack() as stack:
        with _progress("read", len(CONTRACT), unit=" tables") as advance:
            tables = stack.enter_context(open_folder(asked.dir, settings, lambda table: advance(1, table)))
        yield tables, settings, as_of or tables.end


def _moment(text: str, settings: Settings) -> datetime:
    """A date or time as typed, in the shop's time zone unless it carries an offset -> UTC without tzinfo."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageRefused(
            f"--as-of {text!r} is not a date or time; write it as 2026-01-31 or 2026-01-31T18:00"
        ) from None
    aware = found if found.tzinfo else found.replace(tzinfo=settings.zone)
    return aware.astimezone(UTC).replace(tzinfo=None)


@contextlib.contextmanager
def _progress(name: str, total: int, unit: str = " steps") -> Iterator[Callable[..., None]]:
    """A bar on standard error where that is a terminal; what it gives takes how many are done, and what is next."""
    from tqdm import tqdm

    with tqdm(total=total, desc=name, unit=unit, disable=None, leave=False) as bar:

        def advance(done: int = 1, doing: str = "") -> None:
            bar.set_postfix_str(doing, refresh=False)
            bar.update(done)

        yield advance


def _require_training_packages() -> None:
    import importlib.util

    missing = [name for name in ("mlflow", "optuna", "sklearn", "matplotlib") if importlib.util.find_spec(name) is None]
    if missing:
        raise Refused(
            f"this is a serving-only install, without {', '.join(missing)}; install tiercast[train] to train and review"
        )


def _answer(asked: argparse.Namespace, answer: dict[str, Any], text: str) -> None:
    print(json.dumps(_plain(answer), indent=2, allow_nan=False) if asked.json else text, flush=True)


def _plain(value: Any) -> Any:
    """What JSON can hold: moments as ISO 8601, what is undefined as null."""
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, datetime):
        return value.isoformat()
    return None if isinstance(value, float) and value != value else value


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tier_text(table: pd.DataFrame, currency: str) -> str:
    shown = table.rename(
        columns={
            "ltv_mean": f"mean LTV, {currency}",
            "ltv_sum": f"total LTV, {currency}",
            "p_repurchase_mean": "mean p(repurchase)",
        }
    )
    formats = {"share": "{:.1%}".format, "value_share": "{:.1%}".format, "mean p(repurchase)": "{:.3f}".format}
    return shown.to_string(index=False, formatters=formats, float_format=lambda number: f"{number:,.2f}")


if __name__ == "__main__":
    sys.exit(main())
