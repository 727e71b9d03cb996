// The embedded model on CPUs, always one replica.
using 'main.bicep'

param compute = 'cpu'
param image = readEnvironmentVariable('RERANKER_IMAGE', '')
param minReplicas = 1
param maxReplicas = 5
param apiKeys = readEnvironmentVariable('RERANKER_API_KEYS')
param gatewayKey = readEnvironmentVariable('RERANKER_GATEWAY_KEY')
param publisherName = 'Your company'
param publisherEmail = 'you@example.com'
param openIdConfiguration = 'https://login.microsoftonline.com/TENANT/v2.0/.well-known/openid-configuration'
param audience = 'api://reranker'
param registryAccess = readEnvironmentVariable('RERANKER_REGISTRY_ACCESS', 'Disabled')
param gatewayAccess = readEnvironmentVariable('RERANKER_GATEWAY_ACCESS', 'Enabled')
