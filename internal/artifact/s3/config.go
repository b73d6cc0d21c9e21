package s3

import (
	"errors"
	"net/url"
	"regexp"
	"strconv"
	"strings"

	"skerry.dev/skerry/internal/artifact"
)

// Config says where a bucket is and who may use it.
type Config struct {
	// Endpoint is the service's address, "https://s3.eu-central-1.amazonaws.com";
	// empty is Amazon's own.
	Endpoint string
	Region   string // empty is us-east-1
	Bucket   string
	Prefix   string // of all names, without slashes around it; may be empty
	// PathStyle puts the bucket into the path instead of the host name, as most
	// services that are not Amazon's want it.
	PathStyle bool
	AccessKey string
	SecretKey string
}

const (
	defaultEndpoint = "https://s3.amazonaws.com"
	defaultRegion   = "us-east-1"
	// maxPrefix leaves room for the keys in the 1,024 bytes of a name.
	maxPrefix = 512
)

var (
	bucketForm = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$`)
	prefixForm = regexp.MustCompile(`^[A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*$`)
	regionForm = regexp.MustCompile(`^[a-z0-9-]{1,64}$`)
)

// Parse reads "s3://bucket/prefix?endpoint=…&region=…&path_style=true"; keys come
// from elsewhere. path_style is true unless the endpoint is Amazon's.
func Parse(s string) (Config, error) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "s3" || u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return Config{}, errors.New("must be s3://bucket/prefix?endpoint=https://…&region=…, without keys in it")
	}
	q, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return Config{}, errors.New("its parameters cannot be read")
	}
	c := Config{Bucket: u.Host, Prefix: strings.Trim(u.Path, "/")}
	var faults []error
	for name, values := range q {
		if len(values) != 1 {
			faults = append(faults, errors.New(name+" is given more than once"))
			continue
		}
		switch name {
		case "endpoint":
			c.Endpoint = values[0]
		case "region":
			c.Region = values[0]
		case "path_style":
		default:
			faults = append(faults, errors.New(name+" is not known; there are endpoint, region and path_style"))
		}
	}
	c.PathStyle = c.Endpoint != "" && !strings.HasSuffix(hostOf(c.Endpoint), ".amazonaws.com")
	if v := q.Get("path_style"); v != "" {
		if c.PathStyle, err = strconv.ParseBool(v); err != nil {
			faults = append(faults, errors.New("path_style must be true or false"))
		}
	}
	return c, errors.Join(append(faults, c.where()...)...)
}

func hostOf(endpoint string) string {
	u, err := url.Parse(endpoint)
	if err != nil {
		return ""
	}
	return u.Hostname()
}

// Validate lists every fault.
func (c Config) Validate() error {
	faults := c.where()
	if c.AccessKey == "" || c.SecretKey == "" {
		faults = append(faults, errors.New("the access key or the secret key is missing"))
	}
	return errors.Join(faults...)
}

func (c Config) where() (faults []error) {
	if !bucketForm.MatchString(c.Bucket) {
		faults = append(faults, errors.New("the bucket's name must be 3 to 63 lower-case letters, digits, dots and hyphens"))
	}
	// A component of dots would climb.
	if c.Prefix != "" && (len(c.Prefix) > maxPrefix || !prefixForm.MatchString(c.Prefix) || strings.Contains("/"+c.Prefix+"/", "/./") || strings.Contains("/"+c.Prefix+"/", "/../")) {
		faults = append(faults, errors.New("the prefix must be names of letters, digits, dots, underscores and hyphens with slashes between them"))
	}
	if c.Region != "" && !regionForm.MatchString(c.Region) {
		faults = append(faults, errors.New("the region must be lower-case letters, digits and hyphens"))
	}
	if c.Endpoint != "" {
		u, err := url.Parse(c.Endpoint)
		if err != nil || (u.Scheme != "http" && u.Scheme != "https") || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
			faults = append(faults, errors.New("the endpoint must be http:// or https:// with a host, and nothing behind it"))
		}
	}
	return faults
}

// name is a blob's in the bucket.
func (c Config) name(rest string) string {
	if c.Prefix == "" {
		return rest
	}
	return c.Prefix + "/" + rest
}

var _ artifact.Presigner = (*Store)(nil)
