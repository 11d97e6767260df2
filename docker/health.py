"""Ask a gRPC health service, such as a SuperLink's or a SuperNode's, whether it serves: exit code 0 if it does."""

import sys

import grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

TIMEOUT_S = 5
DIRECTLY = [("grpc.enable_http_proxy", 0)]
"""Whatever the environment says of proxies: it is this machine that is asked."""


def main() -> None:
    (address,) = sys.argv[1:]
    with grpc.insecure_channel(address, DIRECTLY) as channel:
        try:
            answer = HealthStub(channel).Check(HealthCheckRequest(), timeout=TIMEOUT_S)
        except grpc.RpcError as error:
            sys.exit(f"{address}: {error.code().name}")
    if answer.status != HealthCheckResponse.SERVING:
        sys.exit(f"{address}: does not serve")


if __name__ == "__main__":
    main()
