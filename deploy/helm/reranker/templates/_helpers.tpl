{{- define "reranker.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "reranker.fullname" -}}
{{- $name := include "reranker.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- /* A Service named reranker would put RERANKER_PORT=tcp://... into the containers of its namespace. */}}
{{- define "reranker.service" -}}
{{ include "reranker.fullname" . }}-http
{{- end }}

{{- define "reranker.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "reranker.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "reranker.selector" -}}
app.kubernetes.io/name: {{ include "reranker.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "reranker.labels" -}}
{{ include "reranker.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 }}
{{- end }}

{{- define "reranker.image" -}}
{{- $repository := required "image.repository is empty: set it to the image that you built and pushed, for example --set image.repository=registry.example/reranker" .Values.image.repository }}
{{- if .Values.image.digest }}
{{- printf "%s@%s" $repository .Values.image.digest }}
{{- else }}
{{- printf "%s:%s" $repository (default .Chart.AppVersion .Values.image.tag) }}
{{- end }}
{{- end }}

{{- /* Helm reads numbers as floats and prints large ones as 8.388608e+06, which is no integer to the service. */}}
{{- define "reranker.text" -}}
{{- if and (kindIs "float64" .) (eq . (floor .)) }}{{ printf "%.0f" . }}{{ else }}{{ . }}{{ end }}
{{- end }}

{{- /* What the service needs to leave: the delay, the time for accepted requests, and 10 s to end. */}}
{{- define "reranker.grace" -}}
{{- $delay := dig "RERANKER_SHUTDOWN_DELAY" 0 .Values.settings | default 0 | float64 | ceil | int }}
{{- $timeout := dig "RERANKER_SHUTDOWN_TIMEOUT" 30 .Values.settings }}
{{- $timeout = ternary 30 $timeout (or (kindIs "invalid" $timeout) (eq (toString $timeout) "")) | float64 | ceil | int }}
{{- add $delay $timeout 10 }}
{{- end }}

{{- define "reranker.toZero" -}}
{{- if and (eq .Values.autoscaling.mode "keda") (lt (int .Values.autoscaling.minReplicas) 1) }}true{{ end }}
{{- end }}

{{- define "reranker.fromHub" -}}
{{- if has .Values.model.source (list "hub" "download") }}true{{ end }}
{{- end }}

{{- define "reranker.keySecret" -}}
{{- if .Values.apiKeys.existingSecret }}
{{- .Values.apiKeys.existingSecret }}
{{- else if .Values.apiKeys.values }}
{{- include "reranker.fullname" . }}-keys
{{- end }}
{{- end }}

{{- /* The pods of this release in Prometheus: the labels that a ServiceMonitor adds. */}}
{{- define "reranker.series" -}}
{namespace="{{ .Release.Namespace }}",service="{{ include "reranker.service" . }}"}
{{- end }}
