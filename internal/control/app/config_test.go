package app

import (
	"strings"
	"testing"
	"time"
)

func TestA13_SignupIsOpenOnLoopbackAlone(t *testing.T) {
	for listen, want := range map[string]string{
		"": "open", "127.0.0.1:7070": "open", "127.8.0.1:1": "open", "[::1]:7070": "open", "localhost:7070": "open",
		"0.0.0.0:7070": "closed", ":7070": "closed", "[::]:7070": "closed", "192.0.2.1:7070": "closed", "host.example.com:7070": "closed",
	} {
		if got := (Config{Listen: listen}).Defaults("/data").Signup; got != want {
			t.Errorf("%q: sign-up is %s, want %s", listen, got, want)
		}
		if got := (Config{Listen: listen, Signup: "example.com"}).Defaults("/data").Signup; got != "example.com" {
			t.Errorf("%q: what was set became %s", listen, got)
		}
	}
}

func TestA13_SignupBehindAProxyIsClosed(t *testing.T) {
	for _, behind := range []Config{
		{URL: "https://skerry.example.com"}, {URL: "http://192.0.2.1:80", Listen: "[::1]:7070"}, {TrustedProxies: "127.0.0.1"}, {URL: "://"},
	} {
		if got := behind.Defaults("/data").Signup; got != "closed" {
			t.Errorf("%+v: sign-up is %s", behind, got)
		}
	}
	if got := (Config{URL: "http://localhost:7070"}).Defaults("/data").Signup; got != "open" {
		t.Errorf("under another name of this machine: sign-up is %s", got)
	}
}

func TestA8_MailIsCheckedAtTheStart(t *testing.T) {
	for _, bad := range []Config{{SMTPURL: "host:25"}, {SMTPURL: "smtp://u:sesame@host:25"}, {SMTPURL: "smtp://u:sesame@host:25", MailFrom: "nobody"}} {
		err := bad.Defaults("/data").Validate()
		if err == nil || !strings.Contains(err.Error(), "SKERRY_SMTP_URL, SKERRY_MAIL_FROM") || strings.Contains(err.Error(), "sesame") {
			t.Errorf("%v", err)
		}
	}
	good := Config{SMTPURL: "smtp://u:p@host:25", MailFrom: "Skerry <skerry@example.com>"}
	if err := good.Defaults("/data").Validate(); err == nil || strings.Contains(err.Error(), "SMTP") { // the rest is missing
		t.Errorf("%v", err)
	}
}

func TestP1_TheStoreIsCheckedAtTheStart(t *testing.T) {
	for store, want := range map[string]string{
		"/srv/store":               "",
		"store":                    "absolute path",
		"ftp://x/y":                "absolute path",
		"s3://b":                   "the bucket's name",
		"s3://bucket/a?endpoint=x": "the endpoint",
		"s3://bucket/a?region=eu-1&endpoint=https://s3.example.com": "SKERRY_S3_ACCESS_KEY",
		"s3://key:secret@bucket":                                    "without keys",
	} {
		err := Config{Store: store}.Defaults("/data").Validate() // the rest is missing
		_, list, named := strings.Cut(err.Error(), "SKERRY_STORE: ")
		if named != (want != "") || !strings.Contains(list, want) {
			t.Errorf("%s: %v", store, err)
		}
	}
	err := Config{Store: "s3://bucket", S3AccessKey: "hunter2", S3SecretKey: "hunter3"}.Defaults("/data").Validate()
	if strings.Contains(err.Error(), "SKERRY_STORE") || strings.Contains(err.Error(), "hunter") {
		t.Errorf("a bucket with its keys: %v", err)
	}
}

func TestH8_HostsAreLookedAtOftenEnough(t *testing.T) {
	for every, fault := range map[time.Duration]bool{0: false, time.Second: false, 30 * time.Second: false, time.Millisecond: true, time.Minute: true, -time.Second: true} {
		err := Config{HostLook: every}.Defaults("/data").Validate()
		if got := strings.Contains(err.Error(), "SKERRY_HOST_LOOK"); got != fault { // the rest is missing
			t.Errorf("%s: %v", every, err)
		}
	}
}

func TestH7_SilenceIsSeveralHeartbeatsLong(t *testing.T) {
	for silence, fault := range map[time.Duration]bool{0: false, 90 * time.Second: false, 3 * time.Second: false, time.Second: true, 2 * time.Hour: true, -time.Second: true} {
		err := Config{HostSilence: silence}.Defaults("/data").Validate()
		if got := strings.Contains(err.Error(), "SKERRY_HOST_SILENCE"); got != fault { // the rest is missing
			t.Errorf("%s: %v", silence, err)
		}
	}
}

func TestS16_WhenStatesAreStoredAndHowFullDisksAre(t *testing.T) {
	for after, fault := range map[string]bool{"": false, "off": false, "0s": false, "10s": false, "24h": false, "25h": true, "-1s": true, "soon": true} {
		err := Config{UploadAfter: after}.Defaults("/data").Validate()
		if got := strings.Contains(err.Error(), "SKERRY_UPLOAD_AFTER"); got != fault { // the rest is missing
			t.Errorf("%q: %v", after, err)
		}
	}
	for free, fault := range map[string]bool{"": false, "0%": false, "15%": false, "20": false, "90%": false, "91%": true, "-1%": true, "NaN": true, "half": true} {
		err := Config{DiskWatermark: free}.Defaults("/data").Validate()
		if got := strings.Contains(err.Error(), "SKERRY_DISK_WATERMARK"); got != fault {
			t.Errorf("%q: %v", free, err)
		}
	}
}
