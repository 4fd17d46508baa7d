{{- /* A Service's name begins with a letter and has no dots; a release's may. */ -}}
{{- define "millrace.name" -}}
{{- if not (regexMatch "^[a-z][-a-z0-9]*$" .Release.Name) -}}
{{- fail (printf "the name of the release, %s, cannot be that of a Service: begin it with a letter, and leave out dots" .Release.Name) -}}
{{- end -}}
{{- if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 52 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- define "millrace.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{- define "millrace.labels" -}}
{{ include "millrace.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- /* NODE_ID of a pod, which may have 64 characters. Pods are numbered: up to three digits. */ -}}
{{- define "millrace.node" -}}
{{- $cluster := ternary "" (printf "%s." .Values.cluster) (empty .Values.cluster) -}}
{{- $longest := printf "%s%s.%s-999" $cluster .Release.Namespace (include "millrace.name" .) -}}
{{- if gt (len $longest) 64 -}}
{{- fail (printf "NODE_ID would be %s, which is longer than 64 characters: shorten the name of the release, the namespace or the value cluster" $longest) -}}
{{- end -}}
{{- printf "%s$(POD_NAMESPACE).$(POD_NAME)" $cluster -}}
{{- end -}}

{{- /* Refuses what `env` would set a second time. A DRAIN_TIMEOUT that the pod is not given would lose payloads. */ -}}
{{- define "millrace.ours" -}}
{{- $ours := dict "MILLRACE_DRAIN_TIMEOUT" "drainTimeoutSeconds" "MILLRACE_NODE_ID" "cluster" "MILLRACE_CONFIG" "config" -}}
{{- range . -}}
{{- if hasKey $ours .name -}}
{{- fail (printf "env has %s, which the chart sets: give the value %s instead" .name (get $ours .name)) -}}
{{- else if has .name (list "POD_NAME" "POD_NAMESPACE") -}}
{{- fail (printf "env has %s, which the chart sets: leave it out" .name) -}}
{{- end -}}
{{- end -}}
{{- end -}}
