"""The edge: an nginx that lets hospitals reach the Fleet API, and nothing else of the SuperLink."""

from base.errors import InputError

LOG_FORMAT = (
    '{"time":$msec,"status":$status,"address":"$remote_addr","key":"$http_flwr_public_key",'
    '"signed":"$http_flwr_timestamp","version":"$http_flwr_package_version"}'
)
"""One JSON line a heartbeat: whose it is, and what it says of the sender's clock and version."""

_TEMPLATE = """\
# Written by 'fedbrainlm federation start' from federation.yaml: change that file, not this one.
daemon off;
worker_processes auto;
pid @FOLDER@/run/nginx.pid;
error_log @FOLDER@/logs/edge-errors.log warn;

events {
    worker_connections 1024;
}

http {
    server_tokens off;
    client_body_temp_path @FOLDER@/run/nginx-body;
    proxy_temp_path @FOLDER@/run/nginx-proxy;
    fastcgi_temp_path @FOLDER@/run/nginx-unused;
    uwsgi_temp_path @FOLDER@/run/nginx-unused;
    scgi_temp_path @FOLDER@/run/nginx-unused;

    # A heartbeat comes every 30 seconds from each hospital, a question for messages every 3 or oftener: only the
    # former are kept.
    map $uri $kept {
        default 0;
        /v1/fleet/send-node-heartbeat 1;
        /v1/fleet/activate-node 1;
    }
    log_format sites escape=json '@LOG_FORMAT@';
    access_log @FOLDER@/logs/heartbeats.log sites if=$kept;

    limit_req_zone $binary_remote_addr zone=requests:10m rate=@RATE@r/s;
    limit_conn_zone $binary_remote_addr zone=connections:10m;
    # After 503 a SuperNode tries again; "too many requests" would end it.
    limit_req_status 503;
    limit_conn_status 503;

    server {
        listen @PORT@ ssl;
        ssl_certificate @SERVER_CERTIFICATE@;
        ssl_certificate_key @SERVER_KEY@;
        ssl_protocols TLSv1.2 TLSv1.3;
        @CLIENT_CERTIFICATES@

        # Flower sends arrays in chunks of 5 MB.
        client_max_body_size @BODY@m;
        client_body_timeout 60s;

        limit_req zone=requests burst=@BURST@ nodelay;
        limit_conn connections @CONNECTIONS@;
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_request_buffering off;
        proxy_buffering off;
        proxy_read_timeout 300s;
        proxy_ssl_trusted_certificate @AUTHORITY@;
        proxy_ssl_verify on;
        proxy_ssl_name localhost;

        location /v1/fleet/ { proxy_pass https://127.0.0.1:@SUPERLINK@; }

        # Hospitals are registered by the coordinator alone.
        location /v1/fleet/register-node { return 403; }
        location /v1/fleet/unregister-node { return 403; }

        # Control starts runs and Runtime executes them: neither is anybody's from outside.
        location / { return 403; }
    }
}
"""
_FORBIDDEN = set("\"';{}\n\\$ ")


def nginx_configuration(
    *,
    folder: str,
    port: int,
    superlink_port: int,
    authority: str,
    server_certificate: str,
    server_key: str,
    client_authority: str | None,
    requests_per_second: int,
    max_request_mb: int,
) -> str:
    """Return the edge's ``nginx.conf``, for ``nginx -c FILE``.

    Raises
    ------
    InputError
        If a path holds what nginx would read as syntax.
    """
    paths = (folder, authority, server_certificate, server_key, client_authority or "")
    for path in paths:
        if _FORBIDDEN & set(path):
            raise InputError(f"{path}: has a space or a sign that nginx cannot have in a path. Choose another folder.")
    client_certificates = (
        f"ssl_client_certificate {client_authority};\n        ssl_verify_client on;"
        if client_authority
        else "# No client certificates: federation.yaml names no client_authority."
    )
    values = {
        "FOLDER": folder,
        "PORT": port,
        "SUPERLINK": superlink_port,
        "AUTHORITY": authority,
        "SERVER_CERTIFICATE": server_certificate,
        "SERVER_KEY": server_key,
        "CLIENT_CERTIFICATES": client_certificates,
        "LOG_FORMAT": LOG_FORMAT,
        "RATE": requests_per_second,
        "BURST": 4 * requests_per_second,
        "CONNECTIONS": 64,
        "BODY": max_request_mb,
    }
    text = _TEMPLATE
    for name, value in values.items():
        text = text.replace(f"@{name}@", str(value))
    return text
