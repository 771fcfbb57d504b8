"""A workspace and a report of Weights & Biases, laid out for comparing arms."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from grpo_guard.schema import ConfigError, record

KINDS = {"own": "optimised ratio", "raw": "raw ratio", "norm": "RatioNorm"}
"""Kinds of ratios, with their titles."""
CLIPS = {"high_pos_adv": "above the range, A > 0", "low_neg_adv": "below the range, A < 0"}
"""Shares of rows on which the clip acts, by the sign of the advantage."""


@record
class Dashboard:
    """What is shown of the runs of a project, by section."""

    project: str
    """Name of the W&B project."""
    entity: str
    """W&B user or team that owns it; "": the account's default."""
    keys: Collection[str]
    """Metric keys that the runs have."""

    def sections(self) -> dict[str, list[Any]]:
        """Return the panels of each section, the most important first; empty ones are left out."""
        sections = {
            "Gold against proxy, by arm": self._golds(),
            "Proxy": self._lines("eval/proxy/") + self._lines("reward/total"),
            "Pictures and ridgelines": self._pictures(),
            **{
                f"Spread of the {title} by step": self._lines(f"ratio_{kind}/std/")
                for kind, title in KINDS.items()
            },
            **{f"Clip {title}": self._lines(f"clip/{name}/") for name, title in CLIPS.items()},
        }
        return {name: panels for name, panels in sections.items() if panels}

    def _golds(self) -> list[Any]:
        """Draw each gold over the proxy; the alarm follows."""
        import wandb_workspaces.reports.v2 as wr

        golds = [key for key in sorted(self.keys) if key.startswith("eval/gold/")]
        proxies = [key for key in sorted(self.keys) if key.startswith("eval/proxy/")]
        panels = [
            wr.LinePlot(title=key, x=wr.Metric(proxy), y=[wr.Metric(key)], title_x=proxy)
            for proxy in proxies[:1]
            for key in golds
        ]
        return panels + self._lines("eval/over_optimising")

    def _lines(self, beginning: str) -> list[Any]:
        """Draw a panel over the iterations for each key with a beginning."""
        import wandb_workspaces.reports.v2 as wr

        keys = [key for key in sorted(self.keys) if key.startswith(beginning)]
        axis = wr.Metric("iteration")
        return [wr.LinePlot(title=key, x=axis, y=[wr.Metric(key)]) for key in keys]

    def _pictures(self) -> list[Any]:
        import wandb_workspaces.reports.v2 as wr

        return [wr.MediaBrowser(title=key, media_keys=[key]) for key in ("samples", "ratios")]

    def workspace(self) -> Any:
        """Return a saved view of the project, with runs grouped by arm."""
        import wandb_workspaces.workspaces as ws

        sections = [
            ws.Section(name=name, panels=panels, is_open=number < 3)
            for number, (name, panels) in enumerate(self.sections().items())
        ]
        return ws.Workspace(
            entity=self.entity,
            project=self.project,
            name="Arms",
            sections=sections,
            settings=ws.WorkspaceSettings(x_axis="iteration"),
            runset_settings=ws.RunsetSettings(groupby=[ws.Metric("Group")]),
        )

    def report(self) -> Any:
        """Return a report with the same panels, and a heading for each section."""
        import wandb_workspaces.reports.v2 as wr

        blocks = []
        for name, panels in self.sections().items():
            runs = wr.Runset(groupby=["Group"])  # without a project: that of the report
            blocks += [wr.H2(text=name), wr.PanelGrid(runsets=[runs], panels=panels)]
        title = "GRPO-Guard: arms"
        return wr.Report(project=self.project, entity=self.entity, title=title, blocks=blocks)


def check_installed() -> None:
    """Raise ConfigError if wandb-workspaces is not installed."""
    if find_spec("wandb_workspaces") is None:
        raise ConfigError(
            "this needs the package wandb-workspaces;"
            " install it with pip install 'grpo_guard[wandb_report]'"
        )


def send(dashboard: Dashboard) -> list[str]:
    """Save the workspace and the report at W&B; return their addresses."""
    import wandb

    entity = dashboard.entity or wandb.Api().default_entity or ""
    dashboard = replace(dashboard, entity=entity)
    workspace = dashboard.workspace().save_as_new_view()
    report = dashboard.report().save()
    return [workspace.url, report.url]


def write(dashboard: Dashboard, folder: Path) -> list[str]:
    """Write what would be sent as workspace.json and report.json; return the files."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for name, thing in {"workspace": dashboard.workspace(), "report": dashboard.report()}.items():
        file = folder / f"{name}.json"
        text = thing._to_model().model_dump_json(by_alias=True, indent=1)
        file.write_text(text, encoding="utf-8")
        files.append(str(file))
    return files
