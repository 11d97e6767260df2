"""What can be wrong with a site's own records and keys, and what to do about each."""

from base.errors import FedBrainLMError


class ClientError(FedBrainLMError):
    """Base of what the site's administrator must mend. Do what the message says and repeat the command."""


class AuditError(ClientError):
    """The audit log is damaged, or is no audit log. Keep the file, find out who changed it, and do what is said."""


class ApprovalError(ClientError):
    """A roster or an app cannot be approved or revoked as asked. Ask the coordinator for the right one."""


class AppError(ClientError):
    """An app is none of ours, or holds what no app of ours does. Ask the coordinator what it is for."""


class SignatureError(ClientError):
    """A signature under an app is none, or nobody's who may approve. Sign the very file, with a key of the policy."""


class RelayError(ClientError):
    """The way between the SuperNode and its apps cannot be made. End what is in its way, or correct ``site.yaml``."""


class JoinError(ClientError):
    """The site has not joined a federation, or another one. Join it with the coordinator's package."""
