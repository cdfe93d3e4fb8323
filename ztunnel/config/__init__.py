"""What the operator said: `load(environ)` makes the frozen Settings, or reports every mistake at once."""

from ztunnel.config.environ import load as load
from ztunnel.config.settings import Settings as Settings
