"""Messages of the Open Inference Protocol over gRPC, built from a table: without generated code, and for any version of protobuf.

Names, numbers and types are those of the protocol's definition, https://github.com/kserve/open-inference-protocol
(specification/protocol/open_inference_grpc.proto). The fields of each message are numbered in the order of the table.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import Default
from google.protobuf.message_factory import GetMessageClass

SERVICE = "inference.GRPCInferenceService"
METHODS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")

_PACKAGE = "inference"
_TENSOR = "string name, string datatype, int64* shape, {parameters} parameters, InferTensorContents contents"
# `*` repeats a field, `{parameters}` is a map from names to `InferParameter`; a dot nests a message
_MESSAGES = {
    "InferParameter": "bool bool_param, int64 int64_param, string string_param, double double_param, uint64 uint64_param",
    "InferTensorContents": "bool* bool_contents, int32* int_contents, int64* int64_contents, uint32* uint_contents, "
    "uint64* uint64_contents, float* fp32_contents, double* fp64_contents, bytes* bytes_contents",
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready",
    "ModelReadyRequest": "string name, string version",
    "ModelReadyResponse": "bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name, string version, string* extensions",
    "ModelMetadataRequest": "string name, string version",
    "ModelMetadataResponse": "string name, string* versions, string platform, TensorMetadata* inputs, TensorMetadata* outputs",
    "ModelMetadataResponse.TensorMetadata": "string name, string datatype, int64* shape",
    "ModelInferRequest": "string model_name, string model_version, string id, {parameters} parameters, InferInputTensor* inputs, "
    "InferRequestedOutputTensor* outputs, bytes* raw_input_contents",
    "ModelInferRequest.InferInputTensor": _TENSOR,
    "ModelInferRequest.InferRequestedOutputTensor": "string name, {parameters} parameters",
    "ModelInferResponse": "string model_name, string model_version, string id, {parameters} parameters, InferOutputTensor* outputs, "
    "bytes* raw_output_contents",
    "ModelInferResponse.InferOutputTensor": _TENSOR,
}
_ONE_OF = {"InferParameter": "parameter_choice"}
_MAP_ENTRY = "ParametersEntry"


def _file() -> FileDescriptorProto:
    file = FileDescriptorProto(name="cifar_ray/open_inference_grpc.proto", package=_PACKAGE, syntax="proto3")
    made: dict[str, DescriptorProto] = {}
    for name, fields in _MESSAGES.items():
        parent, _, own = name.rpartition(".")
        message = made[name] = made[parent].nested_type.add(name=own) if parent else file.message_type.add(name=own)
        if name in _ONE_OF:
            message.oneof_decl.add(name=_ONE_OF[name])
        for number, text in enumerate(filter(None, fields.split(", ")), 1):
            kind, field_name = text.split(" ")
            field = message.field.add(name=field_name, number=number)
            _set_type(field, name, kind, made)
            if name in _ONE_OF:
                field.oneof_index = 0
    service = file.service.add(name=SERVICE.rpartition(".")[2])
    for method in METHODS:
        service.method.add(name=method, input_type=f".{_PACKAGE}.{method}Request", output_type=f".{_PACKAGE}.{method}Response")
    return file


def _set_type(field: FieldDescriptorProto, message: str, kind: str, made: dict[str, DescriptorProto]) -> None:
    is_repeated = kind.endswith("*")
    kind = kind.removesuffix("*")
    if kind == "{parameters}":
        is_repeated = True
        entry = made[message].nested_type.add(name=_MAP_ENTRY)
        entry.options.map_entry = True
        for number, (name, of) in enumerate((("key", "string"), ("value", "InferParameter")), 1):
            _set_type(entry.field.add(name=name, number=number), _MAP_ENTRY, of, made)
        kind = _MAP_ENTRY
    if kind[0].islower():
        field.type = getattr(FieldDescriptorProto, f"TYPE_{kind.upper()}")
    else:
        field.type = FieldDescriptorProto.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind if kind in _MESSAGES else f'{message}.{kind}'}"
    field.label = FieldDescriptorProto.LABEL_REPEATED if is_repeated else FieldDescriptorProto.LABEL_OPTIONAL


# gRPC's reflection looks into the default pool.
Default().AddSerializedFile(_file().SerializeToString())


def _message(name: str) -> Any:
    made = GetMessageClass(Default().FindMessageTypeByName(f"{_PACKAGE}.{name}"))
    made.__module__ = __name__  # Ray pickles requests, and pickle finds a class by its module
    return made


_CLASSES = {name: _message(name) for name in _MESSAGES if "." not in name}
globals().update(_CLASSES)


def message(kind: str, /, **fields: Any) -> Any:
    """Create a message of a kind, for example `ServerLiveResponse`."""
    return _CLASSES[kind](**fields)


def add_servicer(servicer: Any, server: Any) -> None:
    """Register the methods of a servicer with a gRPC server, as Ray Serve's `grpc_servicer_functions` do."""
    handlers = {
        method: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, method),
            request_deserializer=_CLASSES[f"{method}Request"].FromString,
            response_serializer=_CLASSES[f"{method}Response"].SerializeToString,
        )
        for method in METHODS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
