from collm.api.asking import Options as Options
from collm.api.cloud import Cloud as Cloud
from collm.api.cloud import Probe as Probe
from collm.api.conversation import Conversation as Conversation
from collm.api.edge import Edge as Edge
from collm.api.events import Answer as Answer
from collm.api.events import Done as Done
from collm.api.events import Event as Event
from collm.api.events import Preview as Preview
from collm.api.events import Summary as Summary
from collm.api.events import Token as Token
from collm.api.events import WayChanged as WayChanged
from collm.api.events import Withdrawn as Withdrawn
from collm.api.streams import AsyncStream as AsyncStream
from collm.api.streams import Stream as Stream
from collm.errors import ArtifactError as ArtifactError
from collm.errors import CollmError as CollmError
from collm.errors import LinkError as LinkError
from collm.errors import LinkTimeout as LinkTimeout
from collm.errors import PlacementError as PlacementError
from collm.errors import PromptError as PromptError
from collm.errors import Refused as Refused
from collm.errors import Unreachable as Unreachable
from collm.errors import UsageError as UsageError

__version__: str
