"""Providers by the names that frameworks give them."""

from __future__ import annotations

from typing import Final

# OpenTelemetry's names of providers, otherwise the price table's, each with what the frameworks call it.
_ALIASES: Final = {
    "anthropic": "anthropic",
    "aws.bedrock": "bedrock bedrock_converse bedrock-mantle amazon_bedrock aws",
    "azure.ai.openai": "azure azure_openai azure-openai azure_ai",
    "baseten": "baseten",
    "cerebras": "cerebras",
    "cloudflare": "cloudflare",
    "cohere": "cohere cohere_chat",
    "databricks": "databricks",
    "deepseek": "deepseek",
    "fireworks": "fireworks fireworks_ai",
    "gcp.gemini": "google google-gla google_genai google-genai gemini",
    "gcp.vertex_ai": "google-cloud google-vertex google_vertexai vertex_ai",
    "github-copilot": "github-copilot github_copilot",
    "groq": "groq",
    "meta": "meta meta_llama",
    "minimax": "minimax",
    "mistral_ai": "mistral mistralai codestral",
    "moonshot_ai": "moonshot moonshotai",
    "novita": "novita",
    "ollama": "ollama ollama_chat",
    "openai": "openai openai-chat openai-responses",
    "openai-decisions": "openai-decisions",
    "openrouter": "openrouter",
    "ovhcloud": "ovhcloud",
    "perplexity": "perplexity",
    "together": "together together_ai",
    "voyageai": "voyage voyageai",
    "x_ai": "grok xai x-ai x_ai",
    "zai": "zai",
}
_PROVIDERS: Final = {alias: name for name, aliases in _ALIASES.items() for alias in aliases.split()}


def provider_of(name: object) -> str | None:
    """The provider that a framework names; None: it is not known."""
    return _PROVIDERS.get(name.partition(":")[0].lower()) if isinstance(name, str) else None
