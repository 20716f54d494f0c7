# Copyright: Plainkube contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
"""The JSON Schema of tenants documents. tools/generate-docs publishes it as data/tenants.schema.json.

It stands here since modules travel without data files.
"""

from __future__ import annotations

from typing import Any

SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://github.com/plainkube/plainkube.cluster/blob/main/data/tenants.schema.json",
    "title": "Tenants of a cluster",
    "description": "a tenants document: which namespaces belong to whom, and what each may use",
    "type": "object",
    "required": ["tenants"],
    "additionalProperties": False,
    "properties": {
        "tenants": {
            "description": "tenants by name",
            "type": "object",
            "propertyNames": {"$ref": "#/$defs/label_name"},
            "additionalProperties": {"$ref": "#/$defs/tenant"},
        },
        "profiles": {
            "description": "profiles by name: what a namespace gets",
            "type": "object",
            "propertyNames": {"$ref": "#/$defs/label_name"},
            "additionalProperties": {"$ref": "#/$defs/profile"},
        },
        "reserve": {
            "description": "what the cluster's own pods need of all nodes together, by resource (cpu, memory, pods)",
            "$ref": "#/$defs/amounts",
        },
        "overcommit": {
            "description": "how often at most the nodes' capacity may be given away, by quota resource; 1 is once",
            "type": "object",
            "propertyNames": {"$ref": "#/$defs/resource"},
            "additionalProperties": {
                "type": "number",
                "exclusiveMinimum": 0,
                "description": "a number above 0, 1.5 for one and a half times",
            },
        },
    },
    "$defs": {
        "tenant": {
            "description": "a tenant with namespaces, and budget and profile if wanted",
            "type": "object",
            "required": ["namespaces"],
            "additionalProperties": False,
            "properties": {
                "namespaces": {
                    "description": "a list of names, or of entries with a name or labels",
                    "type": "array",
                    "minItems": 1,
                    "items": {"$ref": "#/$defs/namespace"},
                },
                "profile": {"description": "the profile of namespaces that name none", "type": "string"},
                "budget": {
                    "description": "what all namespaces of the tenant may be given together, by quota resource",
                    "$ref": "#/$defs/amounts",
                },
                "create_namespaces": {
                    "description": "true makes namespaces that are missing; without it they are a fault",
                    "type": "boolean",
                },
            },
        },
        "namespace": {
            "description": "a namespace's name, or name or labels with a profile",
            "type": ["string", "object"],
            "$ref": "#/$defs/namespace_name",
            "additionalProperties": False,
            "properties": {
                "name": {"type": "string", "$ref": "#/$defs/namespace_name"},
                "labels": {
                    "description": "labels that the namespaces carry, each with its value as text",
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": {"type": "string", "description": "a label's value as text"},
                },
                "profile": {"description": "the profile of these namespaces", "type": "string"},
            },
        },
        "profile": {
            "description": "what a namespace gets",
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "quotas": {
                    "description": "ResourceQuotas by name",
                    "type": "object",
                    "propertyNames": {"$ref": "#/$defs/label_name"},
                    "additionalProperties": {"$ref": "#/$defs/quota"},
                },
                "limit_range": {
                    "description": "the LimitRange: container, pod and volume_claim",
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": False,
                    "properties": {
                        "container": {"$ref": "#/$defs/container_limits"},
                        "pod": {"$ref": "#/$defs/pod_limits"},
                        "volume_claim": {"$ref": "#/$defs/volume_claim_limits"},
                    },
                },
                "guaranteed": {
                    "description": "true wants limits equal to requests for cpu and memory: evicted last",
                    "type": "boolean",
                },
                "disruption_budget": {
                    "description": "one of max_unavailable and min_available, as a number of pods or as a percentage",
                    "type": "object",
                    "minProperties": 1,
                    "maxProperties": 1,
                    "additionalProperties": False,
                    "properties": {
                        "max_unavailable": {"$ref": "#/$defs/number_or_percentage"},
                        "min_available": {"$ref": "#/$defs/number_or_percentage"},
                    },
                },
                "default_deny": {
                    "description": "what a NetworkPolicy stops, but for DNS: ingress, egress or both",
                    "type": "array",
                    "minItems": 1,
                    "uniqueItems": True,
                    "items": {"description": "ingress or egress", "enum": ["ingress", "egress"]},
                },
                "pod_security": {
                    "description": "Pod Security levels by mode",
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": False,
                    "properties": {
                        "enforce": {"$ref": "#/$defs/pod_security_level"},
                        "audit": {"$ref": "#/$defs/pod_security_level"},
                        "warn": {"$ref": "#/$defs/pod_security_level"},
                    },
                },
                "service_account_token": {
                    "description": "false keeps the default service account's token out of pods",
                    "type": "boolean",
                },
            },
        },
        "quota": {
            "description": "a ResourceQuota: hard, with scopes and priority_classes if wanted",
            "type": "object",
            "required": ["hard"],
            "additionalProperties": False,
            "properties": {
                "hard": {
                    "description": "the most that may be used, by quota resource",
                    "$ref": "#/$defs/amounts",
                    "minProperties": 1,
                },
                "scopes": {
                    "description": "which pods count: Terminating or NotTerminating, BestEffort or NotBestEffort",
                    "type": "array",
                    "minItems": 1,
                    "uniqueItems": True,
                    "items": {
                        "description": "a scope",
                        "enum": ["Terminating", "NotTerminating", "BestEffort", "NotBestEffort"],
                    },
                },
                "priority_classes": {
                    "description": "names of PriorityClasses whose pods alone count",
                    "type": "array",
                    "minItems": 1,
                    "uniqueItems": True,
                    "items": {"type": "string", "description": "the name of a PriorityClass"},
                },
            },
        },
        "container_limits": {
            "description": "min, max, default, default_request and max_limit_request_ratio of each container",
            "type": "object",
            "minProperties": 1,
            "additionalProperties": False,
            "properties": {
                "min": {"$ref": "#/$defs/amounts"},
                "max": {"$ref": "#/$defs/amounts"},
                "default": {"$ref": "#/$defs/amounts"},
                "default_request": {"$ref": "#/$defs/amounts"},
                "max_limit_request_ratio": {"$ref": "#/$defs/amounts"},
            },
        },
        "pod_limits": {
            "description": "min, max and max_limit_request_ratio of all containers of a pod together",
            "type": "object",
            "minProperties": 1,
            "additionalProperties": False,
            "properties": {
                "min": {"$ref": "#/$defs/amounts"},
                "max": {"$ref": "#/$defs/amounts"},
                "max_limit_request_ratio": {"$ref": "#/$defs/amounts"},
            },
        },
        "volume_claim_limits": {
            "description": "min and max of the storage of a PersistentVolumeClaim",
            "type": "object",
            "minProperties": 1,
            "additionalProperties": False,
            "properties": {"min": {"$ref": "#/$defs/amounts"}, "max": {"$ref": "#/$defs/amounts"}},
        },
        "amounts": {
            "description": "quantities by resource",
            "type": "object",
            "propertyNames": {"$ref": "#/$defs/resource"},
            "additionalProperties": {"$ref": "#/$defs/quantity"},
        },
        "quantity": {
            "description": "a quantity such as 500m, 2, 1Gi or 1e3, and not below 0",
            "type": ["string", "number"],
            "minimum": 0,
            "pattern": "^\\+?([0-9]+(\\.[0-9]*)?|\\.[0-9]+)(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]|[eE][+-]?[0-9]+)?$",
        },
        "resource": {
            "description": "a resource's name",
            "pattern": "^[A-Za-z0-9]([A-Za-z0-9_./-]*[A-Za-z0-9])?$",
        },
        "label_name": {
            "description": "at most 63 of a-z, 0-9 and -, no - at its ends",
            "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        },
        "namespace_name": {
            "description": "a namespace's name: at most 63 of a-z, 0-9 and -, no - at its ends",
            "pattern": "^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$",
        },
        "number_or_percentage": {
            "description": "a number of pods or a percentage such as 25%",
            "type": ["integer", "string"],
            "minimum": 0,
            "pattern": "^(100|[1-9]?[0-9])%$",
        },
        "pod_security_level": {"description": "a Pod Security level", "enum": ["privileged", "baseline", "restricted"]},
    },
}
