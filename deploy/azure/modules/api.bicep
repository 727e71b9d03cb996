// The routes that callers can use, and the policy for them.
param gateway string

@description('Where the service answers in the network.')
param backend string

@description('Address of the secret with the key that the gateway sends.')
param keyUri string

@description('Requests are accepted from this Front Door.')
param frontDoorId string

param openIdConfiguration string
param audience string
param requestsPerMinute int

resource service 'Microsoft.ApiManagement/service@2024-05-01' existing = {
  name: gateway
}

resource key 'Microsoft.ApiManagement/service/namedValues@2024-05-01' = {
  parent: service
  name: 'service-key'
  properties: {
    displayName: 'service-key'
    secret: true
    keyVault: {
      secretIdentifier: keyUri
    }
  }
}

var values = {
  'front-door-id': frontDoorId
  'openid-configuration': openIdConfiguration
  audience: audience
  'requests-per-minute': string(requestsPerMinute)
}

resource named 'Microsoft.ApiManagement/service/namedValues@2024-05-01' = [for value in items(values): {
  parent: service
  name: value.key
  properties: {
    displayName: value.key
    value: value.value
  }
}]

resource api 'Microsoft.ApiManagement/service/apis@2024-05-01' = {
  parent: service
  name: 'reranker'
  properties: {
    displayName: 'Reranker'
    path: ''
    protocols: [
      'https'
    ]
    serviceUrl: backend
    // Callers have tokens instead of subscription keys.
    subscriptionRequired: false
  }
}

// Only POST: /metrics, /info and /docs stay inside.
resource ranking 'Microsoft.ApiManagement/service/apis/operations@2024-05-01' = {
  parent: api
  name: 'rank'
  properties: {
    displayName: 'Rank'
    method: 'POST'
    urlTemplate: '/*'
  }
}

resource policy 'Microsoft.ApiManagement/service/apis/policies@2024-05-01' = {
  parent: api
  name: 'policy'
  properties: {
    format: 'xml'
    value: loadTextContent('policy.xml')
  }
  dependsOn: [
    key
    named
  ]
}
