{{- /* The environment of the service: the settings, and what other values set. The schema keeps them apart. */}}
{{- define "reranker.environment" -}}
{{- $settings := .Values.settings }}
{{- range $name, $value := $settings }}
{{- if not (or (kindIs "invalid" $value) (and (eq $name "HF_HUB_OFFLINE") (eq $.Values.model.source "download"))) }}
- name: {{ $name }}
  value: {{ include "reranker.text" $value | quote }}
{{- end }}
{{- end }}
{{- if and .Values.ingress.enabled (ne .Values.ingress.path "/") (not (dig "RERANKER_ROOT_PATH" "" $settings)) }}
- name: RERANKER_ROOT_PATH
  value: {{ trimSuffix "/" .Values.ingress.path | quote }}
{{- end }}
{{- if .Values.gpu.enabled }}
- name: RERANKER_DEVICE
  value: cuda
{{- end }}
{{- if include "reranker.keySecret" . }}
- name: RERANKER_API_KEYS_FILE
  value: /etc/reranker/keys/{{ .Values.apiKeys.secretKey }}
{{- end }}
{{- with .Values.model }}
{{- if dig "RERANKER_MODELS" "" $settings }}{{- /* these have their sources */}}
{{- else if eq .source "embedded" }}
- name: RERANKER_MODEL
  value: {{ .name | default "embedded" | quote }}
{{- else if eq .source "volume" }}
- name: RERANKER_MODEL
  value: {{ printf "/models/%s" .path | trimSuffix "/" | quote }}
{{- else if ne .source "image" }}
- name: RERANKER_MODEL
  value: {{ .name | quote }}
{{- end }}
{{- if .revision }}
- name: RERANKER_REVISION
  value: {{ .revision | quote }}
{{- end }}
{{- if eq .source "download" }}
- name: HF_HUB_OFFLINE
  value: "1"
{{- end }}
{{- end }}
{{- if eq .Values.model.source "hub" }}
{{- include "reranker.token" . }}
{{- end }}
{{- end }}

{{- define "reranker.token" -}}
{{- if .Values.model.tokenSecret.name }}
- name: HF_TOKEN_PATH
  value: /etc/reranker/hub/{{ .Values.model.tokenSecret.key }}
{{- end }}
{{- end }}

{{- define "reranker.tokenMount" -}}
{{- if .Values.model.tokenSecret.name }}
- name: hub
  mountPath: /etc/reranker/hub
  readOnly: true
{{- end }}
{{- end }}

{{- define "reranker.mounts" -}}
- name: cache
  mountPath: /home/reranker/.cache
- name: tmp
  mountPath: /tmp
{{- if include "reranker.keySecret" . }}
- name: keys
  mountPath: /etc/reranker/keys
  readOnly: true
{{- end }}
{{- if eq .Values.model.source "volume" }}
- name: model
  mountPath: /models
  readOnly: true
{{- end }}
{{- if eq .Values.model.source "hub" }}
{{- with include "reranker.tokenMount" . }}
{{ . | trim }}
{{- end }}
{{- end }}
{{- end }}

{{- define "reranker.volumes" -}}
- name: cache
{{- if .Values.cache.persistent }}
  persistentVolumeClaim:
    claimName: {{ default (printf "%s-cache" (include "reranker.fullname" .)) .Values.cache.existingClaim }}
{{- else }}
  emptyDir:
    sizeLimit: {{ .Values.cacheSize }}
{{- end }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .Values.tmpSize }}
{{- with include "reranker.keySecret" . }}
- name: keys
  secret:
    secretName: {{ . }}
    defaultMode: 0440
{{- end }}
{{- if eq .Values.model.source "volume" }}
- name: model
  persistentVolumeClaim:
    claimName: {{ .Values.model.existingClaim }}
    readOnly: true
{{- end }}
{{- if and (include "reranker.fromHub" .) .Values.model.tokenSecret.name }}
- name: hub
  secret:
    secretName: {{ .Values.model.tokenSecret.name }}
    defaultMode: 0440
{{- end }}
{{- end }}

{{- define "reranker.resources" -}}
requests:
  {{- toYaml .Values.resources.requests | nindent 2 }}
limits:
  {{- toYaml .Values.resources.limits | nindent 2 }}
  {{- if .Values.gpu.enabled }}
  {{ .Values.gpu.resource }}: 1
  {{- end }}
{{- end }}

{{- define "reranker.securityContext" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{- /* Nodes of a ReadWriteOnce volume: the one where the first pod runs. A rolling update would wait without end elsewhere. */}}
{{- define "reranker.affinity" -}}
{{- $affinity := deepCopy .Values.affinity }}
{{- if and .Values.cache.persistent (eq .Values.cache.accessMode "ReadWriteOnce") }}
{{- $same := dict "topologyKey" "kubernetes.io/hostname" "labelSelector" (dict "matchLabels" (include "reranker.selector" . | fromYaml)) }}
{{- $own := dict "podAffinity" (dict "requiredDuringSchedulingIgnoredDuringExecution" (list $same)) }}
{{- $affinity = mergeOverwrite $affinity $own }}
{{- end }}
{{- with $affinity }}
{{- toYaml . }}
{{- end }}
{{- end }}
