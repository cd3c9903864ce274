"""Old names of options, as in ``certifier=combined``, for one release.

Hydra finds them beside the files of ``conf/``, on command lines and in a user's own defaults lists,
as configurations of one line: the defaults list that names the new option. They are listed nowhere.
"""

import logging
from functools import cache

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.object_type import ObjectType
from hydra.core.plugins import Plugins
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import OmegaConf

log = logging.getLogger(__name__)

# By group: the old name of an option, and its name today.
RENAMED = {
    "certifier": {
        "combined": "second_order",
        "global": "global_robustness",
        "local_lipschitz": "local_lipsdp",
        "quadric": "quadratic",
    }
}


def current_option(group: str, option: str) -> str:
    """Today's name of an option."""
    return RENAMED.get(group, {}).get(option, option)


class RenamedOptions(ConfigSource):
    """Configurations under old names; each use of one is answered with the new name."""

    @staticmethod
    def scheme() -> str:
        """What the search path calls this source."""
        return "renamed"

    def load_config(self, config_path: str) -> ConfigResult:
        """The defaults list that names the new option."""
        group, _, old = config_path.removesuffix(".yaml").rpartition("/")
        new = RENAMED[group][old]
        _tell(group, old, new)
        # The option's own header says where it belongs.
        header: dict[str, str | None] = {"package": "_global_"}
        path = f"{self.scheme()}://{config_path}"
        return ConfigResult(self.provider, path, OmegaConf.create({"defaults": [new]}), header)

    def available(self) -> bool:
        """Whether the source can be asked."""
        return True

    def is_group(self, config_path: str) -> bool:
        """Whether options of this group were renamed."""
        return config_path in RENAMED

    def is_config(self, config_path: str) -> bool:
        """Whether this is an old name."""
        group, _, old = config_path.removesuffix(".yaml").rpartition("/")
        return old in RENAMED.get(group, {})

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """What is offered: nothing, so that neither help nor hints name an old option."""
        return []


class _BesideConf(SearchPathPlugin):
    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("robustcert", f"{RenamedOptions.scheme()}://")


@cache
def _tell(group: str, old: str, new: str) -> None:
    message = "%s=%s is called %s=%s now: the old name ends with the next release"
    log.warning(message, group, old, group, new)


def register_renamed_options() -> None:
    """Let Hydra find the old names."""
    Plugins.instance().register(RenamedOptions)
    Plugins.instance().register(_BesideConf)
