// A larger model on serverless T4 GPUs, none of them while nobody asks. For an A100 set compute to a100.
using 'main.bicep'

param compute = 't4'
param image = readEnvironmentVariable('RERANKER_IMAGE', '')
param minReplicas = 0
param maxReplicas = 2
param settings = {
  RERANKER_MODEL: '/models/reranker'
}
param apiKeys = readEnvironmentVariable('RERANKER_API_KEYS')
param gatewayKey = readEnvironmentVariable('RERANKER_GATEWAY_KEY')
param publisherName = 'Your company'
param publisherEmail = 'you@example.com'
param openIdConfiguration = 'https://login.microsoftonline.com/TENANT/v2.0/.well-known/openid-configuration'
param audience = 'api://reranker'
param registryAccess = readEnvironmentVariable('RERANKER_REGISTRY_ACCESS', 'Disabled')
param gatewayAccess = readEnvironmentVariable('RERANKER_GATEWAY_ACCESS', 'Enabled')
